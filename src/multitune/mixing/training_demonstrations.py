"""Solved rows before training rows: a model that is asked with demonstrations learns to read them.

After MetaICL (arXiv:2110.15943) and the ablation of OPT-IML (arXiv:2212.12017): the number k of demonstrations is drawn
for every row, few being likelier (p(k) ~ 1 / (k + 1), k = 0 to K), and the loss is on the row's own target alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from multitune.errors import MultituneError
from multitune.mixing.encoding import encode_all, plain_prompt, plain_text
from multitune.tasks.bad_rows import BadRows
from multitune.tasks.prompting import prompted_examples
from multitune.tasks.task import Form, Prompted, Task

POOL = 1000
"""So many of a task's first training rows are drawn from; bounds the memory."""

SEPARATOR = "\n\n"
"""Stands after every demonstration, as in few-shot scoring."""


class TrainingDemonstrations:
    """The demonstrations of one task's training rows.

    Args:
        task: resolved, with ``train_shots`` above 0.
        folder: what its paths are relative to.

    Raises:
        MultituneError: the task's rows are chats.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        # bad rows are counted, or refused, where all rows are read
        rows = prompted_examples(
            task.model_copy(update={"on_bad_row": "skip"}), "train", folder, templates="all", bad_rows=BadRows()
        )
        self._by_template: dict[int, list[Prompted]] = {}
        for row in islice(rows, POOL * max(1, len(task.prompt))):
            if row.messages:
                raise MultituneError(
                    "The rows are chats, whose earlier turns are demonstrations already.",
                    f"tasks.{task.name}.train_shots",
                    "Leave train_shots out.",
                )
            self._by_template.setdefault(row.template, []).append(row)

    def drawn(self, row: Prompted) -> list[Prompted]:
        """Return a row's demonstrations in order: never itself, nor a row that asks the same; the same in every run."""
        draw = Random(f"train_shots/{self.task.name}/{row.template}/{row.example.id}")
        counts = range(self.task.train_shots + 1)
        (shots,) = draw.choices(counts, [1 / (k + 1) for k in counts])
        pool = self._by_template.get(row.template, [])
        found: list[Prompted] = []
        for place in draw.sample(range(len(pool)), min(len(pool), 2 * shots)):
            if len(found) < shots and pool[place].prompt != row.prompt:
                found.append(pool[place])
        return found

    def before(self, rows: Sequence[Prompted], tokenizer: Any, form: Form, max_length: int) -> list[Prompted]:
        """Return rows with their demonstrations in the prompt, as many whole ones as leave room for the row."""
        drawn = [self.drawn(row) for row in rows]
        packed = [_packed(row, shown) for row, shown in zip(rows, drawn, strict=True)]
        long = [i for i, shown in enumerate(drawn) if shown]
        while long:
            encoded = encode_all([packed[i] for i in long], tokenizer, form, self.task.chat)
            long = [
                i for i, (ids, labels) in zip(long, encoded, strict=True) if max(len(ids), len(labels)) > max_length
            ]
            for i in long:
                drawn[i] = drawn[i][1:]
                packed[i] = _packed(rows[i], drawn[i])
            long = [i for i in long if drawn[i]]
        return packed


def _packed(row: Prompted, demonstrations: Sequence[Prompted]) -> Prompted:
    if not demonstrations:
        return row
    return replace(row, prompt=SEPARATOR.join([*map(plain_text, demonstrations), plain_prompt(row)]))
