"""95 % intervals of paired differences, by resampling examples.

Shape legend: ``R`` resamples, ``n`` examples of one stratum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000
Scores = Mapping[tuple[str, int], float]


def scores_by_example(predictions: Sequence[Mapping[str, object]]) -> dict[tuple[str, int], float]:
    """Return every example's score, keyed by its id and how often that id has come before (several templates)."""
    seen: dict[str, int] = {}
    scores = {}
    for prediction in predictions:
        name = str(prediction["id"])
        seen[name] = seen.get(name, -1) + 1
        scores[name, seen[name]] = float(prediction["score"])  # type: ignore[arg-type]
    return scores


def paired_differences(before: Scores, after: Scores) -> np.ndarray:
    """Return after minus before for every example that both have, float64 [n], in the order of ``after``."""
    return np.array([value - before[key] for key, value in after.items() if key in before], dtype=np.float64)


def mean_over_runs(runs: Sequence[Scores]) -> dict[tuple[str, int], float] | None:
    """Return every example's mean score over runs, or None when the runs scored different examples."""
    first = runs[0]
    if any(run.keys() != first.keys() for run in runs):
        return None
    return {key: sum(run[key] for run in runs) / len(runs) for key in first}


def interval_of_mean(strata: Sequence[np.ndarray], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean over strata of each stratum's mean.

    Examples are drawn with replacement inside each stratum (a task, or a run), so that every stratum keeps its say
    whatever its size (Efron & Tibshirani 1993, chapter 8).

    Args:
        strata: at least one array of differences, each float64 [n] with n >= 1.
        seed: of the resampling; the same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    mean_R = np.zeros(RESAMPLES)
    for stratum_n in strata:
        n = len(stratum_n)
        chunk = max(1, 1_000_000 // n)  # bounds the memory of large test sets
        for start in range(0, RESAMPLES, chunk):
            rows = min(chunk, RESAMPLES - start)
            mean_R[start : start + rows] += stratum_n[generator.integers(0, n, (rows, n))].mean(axis=1)
    low, high = np.quantile(mean_R / len(strata), [0.025, 0.975])
    return float(low), float(high)
