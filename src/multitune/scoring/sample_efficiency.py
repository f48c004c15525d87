"""How many examples reach a score: read off a learning curve, and how sure that is over tasks.

Shape legend: ``B`` budgets, ``T`` tasks, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Needed(NamedTuple):
    """The examples that reach a score.

    Attributes:
        examples: None where no budget reaches it.
        low, high: 95 % interval over resampled tasks; None where that bound is not reached either.
        reached: share of the resamples that reach the score.
    """

    examples: float | None
    low: float | None
    high: float | None
    reached: float


def examples_to_reach(score: float, budgets: Sequence[float], scores: Sequence[float]) -> float | None:
    """Return the fewest examples at which a learning curve reaches a score, None where it does not.

    The curve is first made non-decreasing (isotonic regression: the least-squares fit among the curves that never
    fall), then read on a line between two budgets in the logarithm of the examples.

    Args:
        score: to be reached.
        budgets: examples, increasing, above 0; [B].
        scores: of each budget, larger is better; [B].

    Raises:
        ValueError: budgets that do not increase, or not as many scores.
    """
    if len(budgets) != len(scores) or any(b <= a for a, b in zip((0, *budgets), budgets, strict=False)):
        raise ValueError(f"budgets {list(budgets)} have to increase from above 0, one for each of {len(scores)} scores")
    curve_B = non_decreasing(scores)
    reached = np.flatnonzero(curve_B >= score)
    if not len(reached):
        return None
    after = int(reached[0])
    if after == 0:
        return float(budgets[0])
    low, high = curve_B[after - 1], curve_B[after]
    begin, end = math.log(budgets[after - 1]), math.log(budgets[after])
    return math.exp(begin + (score - low) / (high - low) * (end - begin))


def non_decreasing(scores: Sequence[float]) -> np.ndarray:
    """Return the isotonic regression of scores, float64 [B]: blocks that fall become their mean."""
    means: list[float] = []
    counts: list[int] = []
    for value in scores:
        means.append(float(value))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            count = counts[-2] + counts[-1]
            means[-2:] = [(means[-2] * counts[-2] + means[-1] * counts[-1]) / count]
            counts[-2:] = [count]
    return np.repeat(means, counts)


def needed_over_tasks(
    score: float, budgets: Sequence[float], score_TB: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> Needed:
    """Return the examples at which the mean curve of several tasks reaches a score, with a bootstrap over tasks.

    Args:
        score: to be reached.
        budgets: as of `examples_to_reach`.
        score_TB: of every task at every budget.
        resamples: of the tasks, with replacement.
        seed: of the resampling.
    """
    found = examples_to_reach(score, budgets, score_TB.mean(axis=0).tolist())
    drawn_RT = np.random.default_rng(seed).integers(len(score_TB), size=(resamples, len(score_TB)))
    again = [examples_to_reach(score, budgets, score_TB[drawn_T].mean(axis=0).tolist()) for drawn_T in drawn_RT]
    sorted_R = np.sort([math.inf if one is None else one for one in again])
    bounds = [float(sorted_R[round(share * (resamples - 1))]) for share in (0.025, 0.975)]
    low, high = (None if math.isinf(bound) else bound for bound in bounds)
    return Needed(found, low, high, sum(one is not None for one in again) / resamples)
