"""The 95 % interval of a mean over tasks, by resampling runs and the examples inside each task.

    mean = 1/T sum_t 1/K sum_k 1/n_t sum_i d_tki

Every task keeps its say in every resample, whatever its size; one task alone is what
``scoring.significance.paired_difference_over_seeds`` computes.

Shape legend: ``T`` tasks, ``K`` runs, ``n`` aligned examples of a task, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multitune.scoring.predictions import Prediction
from multitune.scoring.significance import RESAMPLES, TAILS

Pair = tuple[Sequence[Prediction], Sequence[Prediction]]  # the answers before and after, of one run


def aligned_differences(pairs: Sequence[Pair]) -> np.ndarray:
    """Return score after minus score before, float64 [K, n], on the examples that all runs have on both sides.

    Examples are told apart by their id and by how often that id has come before (several templates).
    """
    befores = [scores_by_example(before) for before, _ in pairs]
    afters = [scores_by_example(after) for _, after in pairs]
    common = set.intersection(*(set(scores) for scores in [*befores, *afters]))
    keys = [key for key in afters[0] if key in common]
    return np.array([[after[key] - before[key] for key in keys] for before, after in zip(befores, afters, strict=True)])


def scores_by_example(predictions: Sequence[Prediction]) -> dict[tuple[str, int], float]:
    """Return scores by an example's id and how often it has come before (several templates)."""
    seen: dict[str, int] = {}
    scores = {}
    for prediction in predictions:
        seen[prediction.id] = seen.get(prediction.id, -1) + 1
        scores[prediction.id, seen[prediction.id]] = prediction.score
    return scores


def interval_of_task_mean(difference_TKn: Sequence[np.ndarray], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the unweighted mean over tasks.

    Args:
        difference_TKn: per task an array float64 [K, n]; K is the same for all, n is at least 1.
        seed: of the resampling; the same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    K = len(difference_TKn[0])
    weight_RK = generator.multinomial(K, np.full(K, 1 / K), size=RESAMPLES) / K
    mean_R = np.zeros(RESAMPLES)
    for difference_Kn in difference_TKn:
        n = difference_Kn.shape[1]
        chunk = max(1, 1_000_000 // n)  # bounds the memory of large test sets
        for start in range(0, RESAMPLES, chunk):
            rows = slice(start, min(RESAMPLES, start + chunk))
            drawn_Rn = generator.integers(0, n, (rows.stop - rows.start, n))
            mean_RK = np.stack([difference_n[drawn_Rn].mean(axis=1) for difference_n in difference_Kn], axis=1)
            mean_R[rows] += (weight_RK[rows] * mean_RK).sum(axis=1)
    low, high = np.percentile(mean_R / len(difference_TKn), TAILS)
    return float(low), float(high)
