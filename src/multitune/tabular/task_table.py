"""Rows of tasks as a table: which columns are learned from, which one is the answer, and what their cells mean.

A task of a recipe is a table's when its target is one column, ``{{ sales }}`` or ``{{ row["net sales"] }}``. Text that
reads as a number is one where its whole column does: CSV files hold nothing but text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError, nearest
from multitune.tasks.layouts import CHAT_LAYOUTS
from multitune.tasks.task import Example, Prompted, Split, Task

if TYPE_CHECKING:
    import pandas as pd

TARGET = re.compile(r"""\{\{\s*(?:([^\W\d]\w*)|row\[\s*(?P<quote>["'])(.+?)(?P=quote)\s*\])\s*\}\}""")

MISSING = ("", "NA", "NaN", "nan", "null")
"""Cells of a text file that hold nothing."""


@dataclass(frozen=True)
class Column:
    """A column that is learned from, and whether its cells are numbers; else they are words."""

    name: str
    numeric: bool


def target_column(task: Task) -> str:
    """Return the name of the column that holds a task's answers.

    Raises:
        MultituneError: the task has no target, several, or one that is made of more than a column.
    """
    found = TARGET.fullmatch(task.target[0].strip()) if len(task.target) == 1 else None
    if found is None:
        what = "has no target column" if not task.target else f"has the target {' and '.join(map(repr, task.target))}"
        raise MultituneError(
            f"The task '{task.name}' {what}.",
            f"tasks.{task.name}.target",
            'Name the column: target: "{{ sales }}", or "{{ row[\'net sales\'] }}" where it is no single word.',
        )
    return found[1] or found[3]


def table_task_mistakes(task: Task) -> Iterator[MultituneError]:
    """Yield why no column of a table can answer a task: its target, a layout of chats, a kind that is none of ours."""
    try:
        target_column(task)
    except MultituneError as error:
        yield error
    if task.layout in CHAT_LAYOUTS:
        yield MultituneError(
            f"The rows of '{task.name}' are chats and no table.", f"tasks.{task.name}.layout", "Take layout out."
        )
    if task.kind not in ("label", "regress"):
        said = f"is of kind {task.kind}" if task.kind else "does not say its kind"
        yield MultituneError(
            f"The task '{task.name}' {said}, and an estimator learns classes or numbers.",
            f"tasks.{task.name}.kind",
            "Say kind: label for classes, kind: regress for numbers.",
        )
    if task.weight == 0:
        yield MultituneError(
            f"The weight of {task.name} is 0, and an estimator would learn nothing of it.",
            f"tasks.{task.name}.weight",
            "Give a positive weight, or leave the task out of the step.",
        )


def as_table_task(task: Task) -> Task:
    """Return a task that can be read without a prompt: nobody is asked in words."""
    return task if task.prompt else task.model_copy(update={"prompt": ("",)})


def read_rows(task: Task, split: Split, folder: Path) -> list[Prompted]:
    """Return the rows of a split with their answers known; bad ones refused or left out, as the task says.

    Args:
        task: resolved.
        folder: paths are relative to it.
    """
    from multitune.tasks.prompting import prompted_examples

    return list(prompted_examples(task, split, folder, templates="first"))


def answer_of(row: Prompted) -> str | float:
    """Return a row's answer as an estimator learns it: a number, or a class by its text."""
    return row.target if row.value is None else row.value


def find_columns(
    rows: Mapping[str, Sequence[Prompted]],
    features: Sequence[str] | None,
    targets: Collection[str],
    words: Collection[str] = (),
) -> tuple[Column, ...]:
    """Return the columns that are learned from, in the order of the table.

    Args:
        rows: training rows by task, none empty.
        features: their names; None for all columns of the first rows that are no target.
        targets: columns that hold answers.
        words: columns that hold words even where they look like numbers.

    Raises:
        MultituneError: a task's rows have no such column, none is left, or a number is infinite.
    """
    names = features
    if names is None:
        first = dict.fromkeys(name for own in rows.values() for name in own[0].example.fields)
        names = [name for name in first if name not in targets]
    for task, own in rows.items():
        for name in names:
            if not any(name in row.example.fields for row in own):
                known = list(own[0].example.fields)
                raise MultituneError(
                    f"The rows of '{task}' have no column '{name}'.{nearest(name, known)}",
                    f"tasks.{task}.train",
                    f"Name columns that all tasks have in the step's features; these rows have: {', '.join(known)}.",
                )
    if not names:
        raise MultituneError(
            "Beside the targets there is no column to learn from.",
            ", ".join(f"tasks.{task}.train" for task in rows),
            "Give rows with at least one more column.",
        )
    every = [row.example for own in rows.values() for row in own]
    return tuple(Column(name, name not in words and _is_numeric(name, every)) for name in names)


def _is_numeric(name: str, examples: Sequence[Example]) -> bool:
    """Whether all cells of a column that hold something are numbers; an infinite one is refused."""
    for example in examples:
        cell = example.fields.get(name)
        if _missing(cell):
            continue
        if isinstance(cell, bool) or not isinstance(cell, int | float | str):
            return False
        try:
            number = float(cell)
        except ValueError:
            return False
        if math.isinf(number) and not isinstance(cell, str):
            _refuse_infinite(name, example.where)
    for example in examples:  # now "inf" is no word
        cell = example.fields.get(name)
        if isinstance(cell, str) and not _missing(cell) and math.isinf(float(cell)):
            _refuse_infinite(name, example.where)
    return True


def _refuse_infinite(name: str, where: str) -> None:
    raise MultituneError(f"The column '{name}' holds an infinite number.", where, "Replace it, or leave it empty.")


def _missing(cell: Any) -> bool:
    return cell is None or cell in MISSING or (isinstance(cell, float) and math.isnan(cell))


def as_frame(examples: Sequence[Example], columns: Sequence[Column]) -> pd.DataFrame:
    """Return the columns of some rows: numbers as float64, everything else as words, gaps where nothing is.

    Raises:
        MultituneError: a row lacks a column, or a cell of a numeric one is no finite number.
    """
    import numpy as np
    import pandas as pd

    data: dict[str, Any] = {}
    for column in columns:
        if column.numeric:
            data[column.name] = np.array([_number(example, column.name) for example in examples], dtype=np.float64)
        else:
            data[column.name] = pd.Series([_word(example, column.name) for example in examples], dtype=object)
    return pd.DataFrame(data)


def _cell(example: Example, name: str) -> Any:
    try:
        return example.fields[name]
    except KeyError:
        known = list(example.fields)
        raise MultituneError(
            f"The row has no column '{name}'.{nearest(name, known)}", example.where, f"It has: {', '.join(known)}."
        ) from None


def _number(example: Example, name: str) -> float:
    cell = _cell(example, name)
    if _missing(cell):
        return math.nan
    try:
        number = float(cell)
    except (TypeError, ValueError):
        raise MultituneError(
            f"'{cell}' is no number, and the column '{name}' holds numbers where it was learned from.",
            example.where,
            "Correct the cell, or leave it empty.",
        ) from None
    if math.isinf(number):
        _refuse_infinite(name, example.where)
    return number


def _word(example: Example, name: str) -> str | None:
    cell = _cell(example, name)
    if isinstance(cell, list | Mapping):
        raise MultituneError(
            f"The column '{name}' holds a {type(cell).__name__}.", example.where, "Give words or numbers."
        )
    return None if _missing(cell) else str(cell)


def described(example: Example, columns: Sequence[Column]) -> str:
    """Return what an estimator was asked as a reader wants it: "length: 0.55, sex: F"."""
    return ", ".join(f"{column.name}: {example.fields.get(column.name)}" for column in columns)
