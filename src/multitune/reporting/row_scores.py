"""The scores of several models on the rows that all of them answered, as arrays whose rows are training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from multitune.errors import MultituneError
from multitune.reporting.comparison import higher_is_better, main_metric, value_of
from multitune.reporting.intervals import scores_by_example
from multitune.reporting.run_folder import Run, read_predictions

SAME = 1e-6
"""Up to this distance a metric is the mean of its rows' scores."""

Scored = tuple[Run, str]
"""A run, and the node in it whose model was scored."""


def task_value(scored: Scored, task: str) -> float:
    """Return the task's first metric.

    Raises:
        MultituneError: it is missing, or no number.
    """
    run, node = scored
    metric, split = main_metric(run, task)
    found = value_of(run, node, task, split, metric)
    if found is None or not np.isfinite(found[0]):
        raise MultituneError(
            f"The step '{node}' has no {metric} of '{task}'.",
            str(run.folder / "scoreboard.parquet"),
            "Give the task a metric that is defined on all its splits, or run the command again with a new --out.",
        )
    return found[0]


def aligned_rows(groups: Sequence[Sequence[Scored]], task: str) -> list[np.ndarray]:
    """Return the scores of groups of models, float64 [K, n] each, on the n rows that all of them have.

    One column where the metric is no mean over rows. The sign is such that more is better.

    Args:
        groups: the K seeds of every model.
        task: that was scored.
    """
    metric, _ = main_metric(groups[0][0][0], task)
    sign = 1.0 if higher_is_better(metric) else -1.0
    values = [[task_value(scored, task) for scored in group] for group in groups]
    kept = [[scores_by_example(read_predictions(run, node, task)) for run, node in group] for group in groups]
    are_means = all(
        scores and abs(fmean(scores.values()) - value) <= SAME
        for group, numbers in zip(kept, values, strict=True)
        for scores, value in zip(group, numbers, strict=True)
    )
    if not are_means:
        return [sign * np.array(numbers)[:, None] for numbers in values]
    keys = sorted(set.intersection(*(set(scores) for group in kept for scores in group)))
    return [sign * np.array([[scores[key] for key in keys] for scores in group]) for group in kept]
