"""What a transfer run has found: matrices read from its folder, a page, and the answer as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multitune import __version__
from multitune.errors import MultituneError
from multitune.recipes.run_folder import write_whole
from multitune.reporting.charts import cut_name
from multitune.reporting.comparison import higher_is_better, main_metric, value_of
from multitune.reporting.report import environment, signed_text
from multitune.reporting.run_folder import BASE, read_predictions, read_run
from multitune.scoring.task_groups import Grouping
from multitune.scoring.transfer import Answered, Gain, Transfer, gain, transfer

CELL_WIDTH, CELL_HEIGHT, LETTER = 84, 40, 7.2
"""Pixels of a cell of the heat map, and of a letter."""

DEEPEST = 0.55
"""Opacity of a cell whose share is 1 or more, or -1 or less; text on it can still be read."""


@dataclass(frozen=True)
class PairGain:
    """What training two tasks together gains, on each, over training it alone."""

    tasks: tuple[str, str]
    gains: Mapping[str, Gain]


@dataclass(frozen=True)
class Cell:
    """One cell of the heat map: its place, what is written, how deep the colour is and of which side."""

    x: float
    y: float
    text: str
    side: str
    opacity: float


@dataclass(frozen=True)
class Label:
    """A task's name beside its row or above its column."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class HeatMap:
    """The shares of a transfer run as a drawing."""

    width: float
    height: float
    cells: tuple[Cell, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    summary: str


def read_transfer(
    folder: Path, alone: Mapping[str, str], columns: Sequence[str], together: Mapping[tuple[str, str], str]
) -> tuple[Transfer, list[PairGain]]:
    """Return the matrices of a finished run, and what pairs that were trained together gained.

    Args:
        folder: of the run.
        alone: the step that trained a task, by task.
        columns: the scored tasks, those of alone first.
        together: the step that trained a pair, by pair.

    Raises:
        MultituneError: a score is missing or is no number.
    """
    run = read_run(folder)
    metrics = {task: main_metric(run, task) for task in columns}

    def answered(node: str, task: str) -> Answered:
        metric, split = metrics[task]
        found = value_of(run, node, task, split, metric)
        if found is None or not math.isfinite(found[0]):
            raise MultituneError(
                f"The step '{node}' has no {metric} of '{task}'.",
                str(folder / "scoreboard.parquet"),
                "Give the task a metric that is defined on its test rows, or run the command again with a new --out.",
            )
        return Answered(found[0], read_predictions(run, node, task))

    names = {task: metric for task, (metric, _) in metrics.items()}
    base = {task: answered(BASE, task) for task in columns}
    trained = {task: {column: answered(step, column) for column in columns} for task, step in alone.items()}
    pairs = [
        PairGain(pair, {task: gain(trained[task][task], answered(step, task), names[task]) for task in pair})
        for pair, step in together.items()
    ]
    return transfer(list(alone), columns, names, base, trained), pairs


def answer(found: Transfer, pairs: Sequence[PairGain], grouping: Grouping, length: str, snippet: str) -> dict[str, Any]:
    """Return a transfer run as a program wants it."""
    return {
        "trained_for": length,
        "rows": found.rows,
        "columns": found.columns,
        "metrics": {
            task: {"name": name, "higher_is_better": higher_is_better(name)} for task, name in found.metrics.items()
        },
        "base": dict(found.base),
        "scores": found.scores,
        "gains": {row: {task: asdict(one) for task, one in cells.items()} for row, cells in found.gains.items()},
        "shares": found.shares,
        "gained_nothing": found.gained_nothing,
        "affinity": found.affinity,
        "pairs": [
            {"tasks": pair.tasks, "gains": {task: asdict(one) for task, one in pair.gains.items()}} for pair in pairs
        ],
        "advice": grouping.advice,
        "groups": grouping.groups,
        "reason": grouping.reason,
        "silhouettes": grouping.silhouettes,
        "warnings": warnings(found, pairs, grouping),
        "steps": snippet,
    }


def warnings(found: Transfer, pairs: Sequence[PairGain], grouping: Grouping) -> list[str]:
    """Return what stands against the suggestion: tasks that it cannot know, and measured pairs that contradict it."""
    told = [
        f"{task} shows no gain from its own training, so no share of it can be told: train longer or on more rows."
        for task in found.gained_nothing
    ]
    for pair in pairs:
        one, other = pair.tasks
        same = any(one in group and other in group for group in grouping.groups)
        for task, change in pair.gains.items():
            if same and change.verdict == "worse":
                told.append(f"Trained together, {one} and {other} make {task} worse by {abs(change.value):.3f}.")
        if not same and all(change.verdict == "better" for change in pair.gains.values()):
            told.append(f"Trained together, {one} and {other} both gain, though they are in different groups.")
    return told


def heat_map(found: Transfer) -> HeatMap:
    """Return the shares as a drawing: rows train, columns are scored; blue helps, orange hurts, undefined is empty."""
    names = {task: cut_name(task, 18) for task in found.rows}
    left = 16 + LETTER * max(len(name) for name in names.values())
    top = 12 + LETTER * 0.72 * max(len(name) for name in names.values())
    cells = []
    for i, row in enumerate(found.rows):
        for j, column in enumerate(found.rows):
            share = found.shares[row][column]
            opacity = 0.0 if share is None else round(DEEPEST * min(1.0, abs(share)), 3)
            side = "better" if share is None or share >= 0 else "worse"
            cells.append(Cell(left + j * CELL_WIDTH, top + i * CELL_HEIGHT, share_text(share), side, opacity))
    count = len(found.rows)
    told = "; ".join(
        f"{row} to {column} {share_text(found.shares[row][column])}"
        for row in found.rows
        for column in found.rows
        if row != column
    )
    return HeatMap(
        width=left + count * CELL_WIDTH + LETTER * 0.72 * max(len(name) for name in names.values()),
        height=top + count * CELL_HEIGHT + 4,
        cells=tuple(cells),
        rows=tuple(Label(left - 10, top + (i + 0.62) * CELL_HEIGHT, names[task]) for i, task in enumerate(found.rows)),
        columns=tuple(Label(left + (j + 0.45) * CELL_WIDTH, top - 8, names[task]) for j, task in enumerate(found.rows)),
        summary=f"Share of a task's own gain that training on another gives. {told}",
    )


def share_text(share: float | None) -> str:
    """Return a share in per cent with its sign; what is undefined says so."""
    if share is None:
        return "undefined"
    return f"{share:+.0%}".replace("-", "\N{MINUS SIGN}") if abs(share) >= 0.005 else "0%"


def gain_text(one: Gain) -> str:
    """Return a gain with its interval on one line."""
    if one.low is None or one.high is None:
        return f"{signed_text(one.value)} [no interval]"
    return f"{signed_text(one.value)} [{signed_text(one.low)}, {signed_text(one.high)}]"


def write_transfer_page(
    name: str, found: Transfer, pairs: Sequence[PairGain], told: Mapping[str, Any], out: Path
) -> Path:
    """Write the page about a transfer run and return its path.

    Args:
        name: of the recipe.
        found, pairs: what was measured.
        told: its `answer`.
        out: the page.
    """
    templates = environment()
    templates.filters["share"] = share_text
    page = templates.get_template("transfer.html").render(
        name=name,
        found=found,
        pairs=pairs,
        told=told,
        heat=heat_map(found),
        lower={task: not higher_is_better(metric) for task, metric in found.metrics.items()},
        version=__version__,
    )
    write_whole(out, page)
    return out
