"""Answers of a model to rows that nobody has answered yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from multitune.scoring.score import ScoreConfig, answers_of, shown
from multitune.tasks.bad_rows import BadRows
from multitune.tasks.questions import questions
from multitune.tasks.task import Example, Task

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

ROWS_AT_ONCE = 1024
"""Rows that are read before they are sorted by length and answered; memory grows with it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one row.

    Attributes:
        where: file and line of the row.
        fields: the row.
        prediction: a choice's text, the written text, or a number (regress).
    """

    where: str
    fields: Mapping[str, Any]
    prediction: str | float


def predict(
    backbone: Backbone,
    task: Task,
    rows: Iterable[Mapping[str, Any] | Example],
    config: ScoreConfig | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[Answer]:
    """Yield the model's answers in the order of the rows; they are asked as in training and answered as in scoring.

    Args:
        backbone: see ``models.loading.load_saved``; its ``tasks`` are those that it was trained on.
        task: how the rows are asked.
        rows: any number of them, with the fields that the task's prompt names.
        config: of the batches and the normalisation of choices.
        bad_rows: counts the rows that cannot be asked; they are left out.

    Raises:
        MultituneError: the task leaves open how its rows are asked; the model has no head for it.
    """
    config, bad_rows = config or ScoreConfig(), bad_rows if bad_rows is not None else BadRows()
    examples = (
        row if isinstance(row, Example) else Example(f"row:{place}", f"row {place}", dict(row))
        for place, row in enumerate(rows, start=1)
    )
    asked = questions(task, examples, bad_rows)
    while block := tuple(islice(asked, ROWS_AT_ONCE)):
        answers = answers_of(backbone, task, block, config)
        for row, answer in zip(block, answers.values, strict=True):
            yield Answer(row.example.where, row.example.fields, shown(task, row, answer))
