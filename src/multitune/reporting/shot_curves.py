"""Curves over the number of demonstrations: every task's main metric at every number, with its interval."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multitune.reporting.charts import Panel, Series, line_panel
from multitune.reporting.run_folder import SHOTS, Run


@dataclass(frozen=True)
class Point:
    """A score with so many demonstrations: the mean over runs.

    Attributes:
        value: of the metric.
        low, high: its 95 % interval over examples; None of several runs.
        used: demonstrations that stood before a question, in the mean; fewer than asked for where they did not fit.
    """

    value: float
    low: float | None
    high: float | None
    used: float


@dataclass(frozen=True)
class Curve:
    """The scores of one task with every number of demonstrations, in their order."""

    task: str
    metric: str
    points: dict[int, Point]


@dataclass(frozen=True)
class ShotCurves:
    """One score step's curves.

    Attributes:
        step: its name.
        model: that was scored.
        shots: numbers of demonstrations, rising.
        curves: one per task.
        panel: the same as a chart; None where a score is below zero, or nan.
    """

    step: str
    model: str
    shots: tuple[int, ...]
    curves: tuple[Curve, ...]
    panel: Panel | None


def shot_curves(runs: Sequence[Run]) -> list[ShotCurves]:
    """Return the curves of every score step that has one.

    Args:
        runs: of one recipe; scores are means over them.
    """
    steps: dict[str, list[dict[str, Any]]] = {}
    for row in (row for run in runs for row in run.curves):
        steps.setdefault(SHOTS.sub("", row["step"]), []).append(row)
    return [_of_step(step, rows) for step, rows in steps.items()]


def _of_step(step: str, rows: Sequence[dict[str, Any]]) -> ShotCurves:
    curves = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        metric = own[0]["metric"]
        at = {shots: [row for row in own if (row["shots"], row["metric"]) == (shots, metric)] for shots in _shots(own)}
        curves.append(Curve(task, metric, {shots: _point(found) for shots, found in at.items()}))
    return ShotCurves(step, rows[0]["model"], _shots(rows), tuple(curves), _panel(step, curves))


def _shots(rows: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    return tuple(sorted({row["shots"] for row in rows}))


def _point(rows: Sequence[dict[str, Any]]) -> Point:
    alone = len(rows) == 1
    return Point(
        statistics.fmean(row["value"] for row in rows),
        rows[0]["low"] if alone else None,
        rows[0]["high"] if alone else None,
        statistics.fmean(row["shots_used"] for row in rows),
    )


def _panel(step: str, curves: Sequence[Curve]) -> Panel | None:
    """Return the chart of curves of at least two points."""
    drawn = [curve for curve in curves if len(curve.points) > 1]
    if not drawn or not all(point.value >= 0 for curve in drawn for point in curve.points.values()):
        return None
    series = [Series(one.task, [(float(k), point.value) for k, point in one.points.items()]) for one in drawn]
    names = [one.name for one in series]
    return line_panel(f"Demonstrations: {step}", series, names, width=560, height=230, along="demonstrations")
