"""Scores by data set and language, of every model of a run: the median and the best over prompts, seen and unseen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multitune.reporting.comparison import main_metric
from multitune.reporting.run_folder import BASE, Run
from multitune.scoring.languages import (
    LanguageCell,
    LanguageMean,
    Place,
    Seen,
    language_cells,
    language_means,
    languages_seen,
    place_of,
)

DEEPEST = 60
"""Per cent of the heat map's colour behind a score of 1."""


@dataclass(frozen=True)
class LanguageRow:
    """One model on one data set.

    Attributes:
        node: that left the model.
        cells: by language.
        means: by group: all, seen, unseen.
    """

    node: str
    cells: Mapping[str, LanguageCell]
    means: Mapping[str, LanguageMean]


@dataclass(frozen=True)
class LanguageTable:
    """One data set in all its languages.

    Attributes:
        dataset, metric: what is scored.
        languages: the columns.
        groups: of the means that some model has, in order.
        prompts: fewest and most prompts of a cell.
        shaded: whether scores lie in 0 to 1, so that a colour can tell them.
        rows: one per model.
    """

    dataset: str
    metric: str
    languages: tuple[str, ...]
    groups: tuple[str, ...]
    prompts: tuple[int, int]
    shaded: bool
    rows: tuple[LanguageRow, ...]


def language_tables(runs: Sequence[Run]) -> list[LanguageTable]:
    """Return a table per data set, [] where the recipe names fewer than two languages.

    Args:
        runs: of one recipe; a prompt's score is the mean over them.
    """
    first = runs[0]
    tags = {task: _tags(first, task) for task in first.tasks}
    places = {task: place for task, told in tags.items() if (place := place_of(task, told)) is not None}
    if len({place.language for place in places.values()}) < 2:
        return []
    every = {task: _tags(first, task) for task in first.recipe["tasks"]}
    means = _mean_scores(runs, places)
    cells = {
        node: language_cells(
            [row for row in means if row["step"] == node], places, languages_seen(every, trained_tasks(first, node))
        )
        for node in first.nodes
    }
    found = dict.fromkeys((cell.dataset, cell.metric) for own in cells.values() for cell in own)
    return [_table(dataset, metric, cells) for dataset, metric in found]


def trained_tasks(run: Run, node: str) -> list[str]:
    """Return the tasks that a model and those it was made from were trained on; all of the run's where that is open."""
    steps: Mapping[str, Any] = run.recipe.get("steps") or {}
    learned: dict[str, None] = {}
    while node != BASE:
        learned |= {name: None for line in run.logs.get(node, ()) for name in line.get("tasks", ())}
        step = steps.get(node.partition("@")[0].partition(".")[0], {})
        if not isinstance(step, Mapping) or step.get("do", "train") not in ("train", "score"):  # a merge, a fusion
            return list({name: None for lines in run.logs.values() for line in lines for name in line.get("tasks", ())})
        node = str(step.get("model", BASE))
        if node != BASE and node.partition(".")[0] not in steps:
            break
    return list(learned)


def _tags(run: Run, task: str) -> dict[str, str]:
    tags = run.task_settings(task).get("tags")
    return dict(tags) if isinstance(tags, Mapping) else {}


def _mean_scores(runs: Sequence[Run], places: Mapping[str, Place]) -> list[dict[str, Any]]:
    """Return every task's rows of its first metric, one per prompt where those are told apart, as means over runs."""
    wanted = {task: main_metric(runs[0], task) for task in places}
    collected: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in runs:
        apart = {(row["step"], row["task"]) for row in run.by_template}
        whole = [row for row in run.scores if (row["step"], row["task"]) not in apart]
        for row in (*run.by_template, *whole):
            if (row["metric"], row["split"]) == wanted.get(row["task"]):
                collected.setdefault((row["step"], row["task"], row["template"]), []).append(row)
    return [{**rows[0], "value": statistics.fmean(row["value"] for row in rows)} for rows in collected.values()]


def _table(dataset: str, metric: str, cells_by_node: Mapping[str, Sequence[LanguageCell]]) -> LanguageTable:
    own = {
        node: [cell for cell in cells if (cell.dataset, cell.metric) == (dataset, metric)]
        for node, cells in cells_by_node.items()
    }
    rows = tuple(
        LanguageRow(node, {cell.language: cell for cell in cells}, {mean.seen: mean for mean in language_means(cells)})
        for node, cells in own.items()
        if cells
    )
    every = [cell for cells in own.values() for cell in cells]
    prompts = [cell.scores.prompts for cell in every]
    values = [value for cell in every for value in (cell.scores.median, cell.scores.best)]
    return LanguageTable(
        dataset,
        metric,
        tuple(dict.fromkeys(cell.language for cell in every)),
        tuple(group for group in ("seen", "unseen", "all") if any(group in row.means for row in rows)),
        (min(prompts), max(prompts)),
        all(0 <= value <= 1 for value in values),
        rows,
    )


def depth(value: float) -> int:
    """Return how deep the colour behind a score between 0 and 1 is, in per cent."""
    return round(DEEPEST * min(max(value, 0.0), 1.0))


def seen_in_words(seen: Seen) -> str:
    """Return what a reader is told of a language."""
    return {"seen": "seen", "unseen": "not seen", "": "not said whether seen"}[seen]
