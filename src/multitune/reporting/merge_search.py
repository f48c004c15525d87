"""The candidates of merges: each task's score on validation rows, against the coefficient where there is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multitune.reporting.charts import Panel, Series, line_panel
from multitune.reporting.run_folder import Run

MEAN = "mean"


@dataclass(frozen=True)
class CandidateRow:
    """One candidate: its mean over tasks, and every task's first metric."""

    name: str
    quality: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class MergeSearchView:
    """The search of one merge step; ``panels`` hold one chart per setting of what is not drawn along the axis."""

    node: str
    best: str
    tasks: tuple[str, ...]
    candidates: tuple[CandidateRow, ...]
    panels: tuple[Panel, ...]


def merge_searches(run: Run) -> tuple[MergeSearchView, ...]:
    """Return what the searching merges of a run have found."""
    return tuple(search_view(node, told) for node, told in run.searches.items())


def search_view(node: str, told: Mapping[str, Any]) -> MergeSearchView:
    """Return what one ``search.json`` tells, as tables and charts show it."""
    rows = [CandidateRow(one["name"], one["quality"], _first_metrics(one["rows"])) for one in told["candidates"]]
    tasks = tuple(dict.fromkeys(task for row in rows for task in row.scores))
    values = [one["values"] for one in told["candidates"]]
    return MergeSearchView(node, told["best"], tasks, tuple(rows), tuple(_panels(node, rows, values, tasks)))


def _first_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        found.setdefault(row["task"], row["value"])
    return found


def _panels(
    node: str, rows: Sequence[CandidateRow], values: Sequence[Mapping[str, Any]], tasks: Sequence[str]
) -> list[Panel]:
    """Draw along the first key that has several values, all of them numbers that are not negative."""
    along = next((key for key in values[0] if _is_axis([each[key] for each in values])), None)
    if along is None or any(score < 0 for row in rows for score in (row.quality, *row.scores.values())):
        return []
    settings: dict[str, list[tuple[float, CandidateRow]]] = defaultdict(list)
    for each, row in zip(values, rows, strict=True):
        rest = ", ".join(f"{key} {value}" for key, value in each.items() if key != along)
        settings[rest].append((float(each[along]), row))
    panels = []
    for rest, found in settings.items():
        found.sort(key=lambda one: one[0])
        names = [*tasks, MEAN] if len(tasks) > 1 else list(tasks)
        series = [
            Series(name, [(x, row.quality if name == MEAN else row.scores[name]) for x, row in found]) for name in names
        ]
        title = f"{node}: quality against {along}" + (f" ({rest})" if rest else "")
        panels.append(line_panel(title, series, names, width=560, height=230, along=along))
    return panels


def _is_axis(values: Sequence[Any]) -> bool:
    return len(set(values)) > 1 and all(isinstance(value, int | float) and value >= 0 for value in values)
