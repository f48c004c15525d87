"""How far a model generalises: scores by level, from tasks it was trained on to categories it never saw (OPT-IML).

    category = mean over its tasks,   level = mean over its categories

so that neither a task with many rows or templates nor a category with many tasks outweighs the others. The 95 %
interval resamples tasks inside every category, and answers inside every task; categories stay as they are.

Shape legend: ``N`` answers of a task, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from multitune.tasks.task import Task

Level = Literal["held-out examples", "held-out tasks", "held-out categories", "not trained"]
LEVELS: tuple[Level, ...] = ("held-out examples", "held-out tasks", "held-out categories", "not trained")
"""From the nearest to the farthest; "not trained" where it is not known what a model was trained on."""

RESAMPLES = 1000


@dataclass(frozen=True)
class TaskValues:
    """What a model did on one task.

    Attributes:
        task: its name.
        category: "" where it has none.
        level: of the task for this model.
        scores: of every answer in the task's first metric, 0 to 1; [N]. A row asked through several templates has
            several.
    """

    task: str
    category: str
    level: Level
    scores: Sequence[float]


@dataclass(frozen=True)
class LevelScore:
    """A line of the table.

    Attributes:
        level: whose it is.
        category: "" for the level as a whole.
        tasks: that it is a mean of.
        value, low, high: the mean with its 95 % interval.
    """

    level: Level
    category: str
    tasks: int
    value: float
    low: float
    high: float


def level_of(task: str, category: str, trained: Mapping[str, str]) -> Level:
    """Return how far a task is from those that a model was trained on.

    Fully supervised (held-out examples): the task itself was trained on; partially supervised (held-out tasks): another
    one of its category was; fully held out (held-out categories): none was. A task without a category is one of its
    own.

    Args:
        task: its name.
        category: "" where it has none.
        trained: category by name of the tasks trained on; {} where they are not known.
    """
    if not trained:
        return "not trained"
    if task in trained:
        return "held-out examples"
    return "held-out tasks" if category and category in trained.values() else "held-out categories"


def category_of(task: Task) -> str:
    """Return the category that a task's tags name, "" where they name none."""
    return task.tags.get("category", "")


def by_level(values: Sequence[TaskValues], *, seed: int = 0) -> list[LevelScore]:
    """Return every level that occurs, each followed by its categories in the order of their first task.

    Raises:
        ValueError: a task has no answer.
    """
    rng, lines = np.random.default_rng(seed), []
    for level in LEVELS:
        categories: dict[str, list[TaskValues]] = {}
        for one in values:
            if one.level == level:
                categories.setdefault(one.category or one.task, []).append(one)
        if not categories:
            continue
        means = {name: float(np.mean([_mean(task) for task in tasks])) for name, tasks in categories.items()}
        resampled = {name: _resampled(tasks, rng) for name, tasks in categories.items()}
        whole = np.mean(list(resampled.values()), axis=0)
        count = sum(map(len, categories.values()))
        lines.append(LevelScore(level, "", count, float(np.mean(list(means.values()))), *_bounds(whole)))
        lines += [
            LevelScore(level, name, len(tasks), means[name], *_bounds(resampled[name]))
            for name, tasks in categories.items()
        ]
    return lines


def _mean(task: TaskValues) -> float:
    if not len(task.scores):
        raise ValueError(f"task {task.task} has no answer")
    return float(np.mean(task.scores))


def _resampled(tasks: Sequence[TaskValues], rng: np.random.Generator) -> np.ndarray:
    """Return the mean of a category over tasks drawn again, of answers drawn again, [R]."""
    means_TR = np.stack([_means_of_resamples(task.scores, rng) for task in tasks])
    drawn_RT = rng.integers(len(tasks), size=(RESAMPLES, len(tasks)))
    return means_TR[drawn_RT, np.arange(RESAMPLES)[:, None]].mean(axis=1)


def _means_of_resamples(scores: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    places_RN = rng.integers(len(scores), size=(RESAMPLES, len(scores)))
    means_R: np.ndarray = np.asarray(scores, dtype=np.float64)[places_RN].mean(axis=1)
    return means_R


def _bounds(values_R: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values_R, [0.025, 0.975])
    return float(low), float(high)
