"""Which solved rows stand before a question: drawn by seed and question, nested in their number, never the question.

The list of K demonstrations of a question is the beginning of its list of K + 1, so that a curve over K is paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from multitune.errors import MultituneError
from multitune.tasks.task import Split

if TYPE_CHECKING:
    from multitune.tasks.prompting import TemplatePolicy
    from multitune.tasks.task import Prompted, Task


class Demonstrations(BaseModel):
    """How the rows that stand before a question are drawn and written.

    Attributes:
        draw: "per_item" draws a list of its own for every question (Brown et al. 2020, section 2.4); "fixed" gives all
            questions one list, so that its keys and values are computed once.
        seed: of the draw.
        split: where they come from; by default train, else validation. A question never stands before itself.
        pool: at most so many rows of the split are drawn from, chosen as ``rows`` are; bounds the memory.
        instruction: stands on top of everything, with or without demonstrations.
        separator: stands after every demonstration; chats need none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    draw: Literal["per_item", "fixed"] = "per_item"
    seed: int = Field(0, ge=0)
    split: Split | None = None
    pool: int = Field(10_000, ge=1)
    instruction: str = ""
    separator: str = "\n\n"


@dataclass(frozen=True)
class Pool:
    """The rows that demonstrations are drawn from.

    Attributes:
        task: whose rows they are.
        split: where they come from.
        by_template: the rows through each template; equal places hold the same example.
    """

    task: str
    split: Split
    by_template: Mapping[int, Sequence[Prompted]]


def demonstration_split(task: Task, settings: Demonstrations) -> Split:
    """Return the split that a task's demonstrations come from.

    Raises:
        MultituneError: the task has no such split.
    """
    if settings.split is None:
        return "train" if task.train is not None else "validation"
    return settings.split


def pool_of(task: Task, folder: Path, settings: Demonstrations, *, templates: TemplatePolicy) -> Pool:
    """Return the rows that demonstrations of a task are drawn from.

    Args:
        task: resolved.
        folder: what its paths are relative to.
        settings: of the draw.
        templates: "first" or "all", as the questions are asked.

    Raises:
        MultituneError: the task has no rows to draw from.
    """
    from multitune.scoring.rows import sample
    from multitune.tasks.prompting import BadRows, prompted_examples

    split = demonstration_split(task, settings)
    if task.source(split) is None:
        raise MultituneError(
            f"Task '{task.name}' has no {split} rows to show as demonstrations.",
            f"tasks.{task.name}.{split}",
            "Give it a train source, name another split in score.demonstrations.split, or set shots: 0.",
        )
    rows = sample(prompted_examples(task, split, folder, templates=templates, bad_rows=BadRows()), settings.pool)
    by_template: dict[int, list[Prompted]] = {}
    for row in rows:
        by_template.setdefault(row.template, []).append(row)
    return Pool(task.name, split, by_template)


def demonstrations_for(question: Prompted, pool: Pool, shots: int, settings: Demonstrations) -> list[Prompted]:
    """Return the rows that stand before a question, in order; fewer than ``shots`` where the pool holds no more.

    A row that asks what the question asks is passed over: the question itself, and every copy of it.
    """
    rows = pool.by_template.get(question.template, ())
    whose = question.example.id if settings.draw == "per_item" else ""
    drawn: list[Prompted] = []
    for place in shuffled_places(len(rows), Random(f"demonstrations/{settings.seed}/{pool.task}/{whose}")):
        if len(drawn) == shots:
            break
        if asked(rows[place]) != asked(question):
            drawn.append(rows[place])
    return drawn


def asked(row: Prompted) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return what a row asks, without its answer."""
    return row.prompt, tuple((turn.role, turn.content) for turn in row.messages[:-1])


def shuffled_places(n: int, rng: Random) -> Iterator[int]:
    """Yield 0..n-1 in random order, one at a time: Fisher and Yates' shuffle that moves only what it has come to."""
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        yield moved.get(j, j)
        moved[j] = moved.get(i, i)
