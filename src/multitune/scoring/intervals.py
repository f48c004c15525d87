"""95 % bootstrap intervals of a score over the examples of a task.

Shape legend: ``n`` examples, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000  # of a mean over examples; enough for two digits of a 95 % bound (Efron & Tibshirani 1993, chapter 19)
# Examples that all resamples of a corpus metric may read together, so that an interval takes about a second or two.
NUMBERS, TEXTS = 1_000_000, 20_000
FEWEST_RESAMPLES = 50
TAILS = (2.5, 97.5)


def interval_of_mean(value_n: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of per-example values, float64 [n] with n >= 1."""
    generator = np.random.default_rng(seed)
    n = len(value_n)
    chunk = max(1, 1_000_000 // n)  # bounds the memory of large test sets
    parts = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    mean_R = np.concatenate([value_n[generator.integers(0, n, (rows, n))].mean(axis=1) for rows in parts])
    low, high = np.percentile(mean_R, TAILS)
    return float(low), float(high)


def interval_of_corpus_metric(
    score: Callable[[Sequence[Any], Sequence[Any]], float],
    predictions: Sequence[Any],
    references: Sequence[Any],
    *,
    seed: int,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a metric that is no mean over examples, such as macro-F1.

    The metric is computed anew on every resample; the more examples, the fewer resamples, between 50 and 1000.
    Resamples on which it is undefined (nan) are left out; (nan, nan) when all are.
    """
    generator = np.random.default_rng(seed)
    n = len(references)
    values = []
    budget = NUMBERS if isinstance(references[0], int | float) else TEXTS
    for _ in range(int(np.clip(budget // n, FEWEST_RESAMPLES, RESAMPLES))):
        rows = generator.integers(0, n, n).tolist()
        values.append(score([predictions[i] for i in rows], [references[i] for i in rows]))
    defined = np.array([value for value in values if not np.isnan(value)])
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, TAILS)
    return float(low), float(high)
