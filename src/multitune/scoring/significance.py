"""Whether one model is better than another on the same examples: the paired bootstrap.

    d_i = score of example i after - score of example i before

Resampling examples together with both models' answers takes the examples' difficulty out of the comparison (Koehn 2004,
"Statistical Significance Tests for Machine Translation Evaluation").

Shape legend: ``n`` aligned examples, ``K`` seeds, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multitune.errors import MultituneError
from multitune.scoring.predictions import Prediction

RESAMPLES = 2000
TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class PairedDifference:
    """Mean score after minus mean score before, on the examples that both lists have.

    Attributes:
        difference: in the metric's own direction and unit.
        low, high: 95 % bounds.
        aligned: examples compared; before_only, after_only: examples left out because the other list lacks them.
        seeds: pairs of lists compared.
        p: two-sided: twice the share of the resampled means on the other side of zero than most, at most 1.
    """

    difference: float
    low: float
    high: float
    aligned: int
    before_only: int
    after_only: int
    seeds: int = 1
    p: float = 1.0


def paired_difference(
    before: Sequence[Prediction], after: Sequence[Prediction], *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedDifference:
    """Return the difference of two models' mean scores and its 95 % interval over examples.

    Lists are aligned by example id; an id's several templates are aligned in their order.

    Raises:
        MultituneError: no example occurs in both lists.
    """
    return paired_difference_over_seeds([(before, after)], seed=seed, resamples=resamples)


def paired_difference_over_seeds(
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]], *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedDifference:
    """Return the mean difference over seeds, and its 95 % interval over seeds and examples together.

    Every resample draws K seeds and n examples with replacement, so that the interval holds what another training seed
    and other examples would change. With fewer than about five seeds it is too narrow: K seeds cannot show more spread
    than they have.

    Args:
        pairs: (before, after) of every training seed, on the same examples; examples that any list lacks are left out.

    Raises:
        MultituneError: no example occurs in all lists.
    """
    befores = [_scores(before) for before, _ in pairs]
    afters = [_scores(after) for _, after in pairs]
    common = set.intersection(*(set(scores) for scores in [*befores, *afters])) if pairs else set()
    if not common:
        raise MultituneError(
            "The two lists of predictions have no example in common.",
            f"{len(befores[0]) if pairs else 0} examples before, {len(afters[0]) if pairs else 0} after",
            "Compare predictions of the same task and split.",
        )
    keys = [key for key in afters[0] if key in common]
    difference_Kn = np.array(
        [[after[key] - before[key] for key in keys] for before, after in zip(befores, afters, strict=True)]
    )
    mean_R = _resampled_means(difference_Kn, seed, resamples)
    low, high = np.percentile(mean_R, TAILS)
    # one is added on either side, as if the data themselves were a resample: no p-value is 0 (Davison & Hinkley 1997)
    tail = 1 + min(int((mean_R <= 0).sum()), int((mean_R >= 0).sum()))
    return PairedDifference(
        difference=float(difference_Kn.mean()),
        low=float(low),
        high=float(high),
        aligned=len(keys),
        before_only=len(set().union(*befores) - common),
        after_only=len(set().union(*afters) - common),
        seeds=len(pairs),
        p=min(1.0, 2 * tail / (1 + len(mean_R))),
    )


def _scores(predictions: Sequence[Prediction]) -> dict[tuple[str, int], float]:
    """Return every prediction's score keyed by its example's id and how often that id has come before."""
    seen: dict[str, int] = {}
    scores = {}
    for prediction in predictions:
        seen[prediction.id] = seen.get(prediction.id, -1) + 1
        scores[prediction.id, seen[prediction.id]] = prediction.score
    return scores


def _resampled_means(difference_Kn: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return the mean of R resamples of seeds and examples, float64 [R]."""
    generator = np.random.default_rng(seed)
    K, n = difference_Kn.shape
    chunk = max(1, 1_000_000 // n)  # bounds the memory of large test sets
    means = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        # How often each seed is drawn weighs it; with one seed that is always once.
        weight_RK = generator.multinomial(K, np.full(K, 1 / K), size=rows) / K
        drawn_Rn = generator.integers(0, n, (rows, n))
        mean_RK = np.stack([difference_n[drawn_Rn].mean(axis=1) for difference_n in difference_Kn], axis=1)
        means.append((weight_RK * mean_RK).sum(axis=1))
    return np.concatenate(means)
