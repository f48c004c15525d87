"""Scores by level of generalisation, of the base and of every model that several tasks trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from multitune.reporting.comparison import main_metric, value_of
from multitune.reporting.run_folder import BASE, Run, read_predictions
from multitune.scoring.levels import LevelScore, TaskValues, by_level, level_of


@dataclass(frozen=True)
class LevelTable:
    """One model beside the base.

    Attributes:
        node: that left the model.
        lines: (level or category, the base's score, the model's); the base's is None where it was not scored.
    """

    node: str
    lines: tuple[tuple[LevelScore, LevelScore | None, LevelScore], ...]


def level_tables(run: Run) -> list[LevelTable]:
    """Return a table per model that was trained on several tasks, [] where no task of the recipe has a category.

    Args:
        run: the first one, where there are several seeds.
    """
    categories = {name: _category(run, name) for name in run.tasks}
    if not any(categories.values()):
        return []
    tables = []
    for node in run.nodes:
        trained = {name: categories[name] for name in _trained(run, node) if name in categories}
        if len(trained) < 2:
            continue
        after = by_level(_values(run, node, categories, trained))
        before = {(one.level, one.category): one for one in by_level(_values(run, BASE, categories, trained))}
        lines = tuple((one, before.get((one.level, one.category)), one) for one in after)
        if lines:
            tables.append(LevelTable(node, lines))
    return tables


def _category(run: Run, task: str) -> str:
    tags = run.task_settings(task).get("tags")
    return str(tags.get("category", "")) if isinstance(tags, Mapping) else ""


def _trained(run: Run, node: str) -> list[str]:
    return list(dict.fromkeys(name for line in run.logs.get(node, ()) for name in line.get("tasks", ())))


def _values(run: Run, node: str, categories: Mapping[str, str], trained: Mapping[str, str]) -> list[TaskValues]:
    """Return the answers to every task whose first metric is a mean over them, between 0 and 1."""
    values = []
    for name, category in categories.items():
        metric, split = main_metric(run, name)
        found = value_of(run, node, name, split, metric)
        scores = [one.score for one in read_predictions(run, node, name)]
        if found is None or not scores or not all(0 <= one <= 1 for one in scores):
            continue
        if abs(sum(scores) / len(scores) - found[0]) <= 1e-6:
            values.append(TaskValues(name, category, level_of(name, category, trained), scores))
    return values
