"""Which ingredients of a mixture help a task: cocktails, what each gains, and every ingredient's part in it.

    v(S)    score of the target after training on the target and the ingredients S, paired by training seed and row
    gain    g(S) = v(S) - v({}),  {} being the target alone
    Shapley phi_X = sum over S without X of |S|! (k - |S| - 1)! / k!  [v(S + X) - v(S)]      every S was trained
    least squares v(S) ~ b_0 + sum_X b_X [X in S]                                            some were

Both effects are linear in the scores, so that each is a weight per cocktail, and its interval comes from the same
resampling of seeds and rows as that of a gain.

Sources: "Mixing It Up: The Cocktail Effect of Multi-Task Fine-Tuning" (arXiv:2410.01109); Shapley 1953.

Shape legend: ``k`` ingredients, ``C`` cocktails, ``K`` training seeds, ``n`` rows of the target, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

import numpy as np

from multitune.scoring.significance import RESAMPLES, TAILS

Cocktail = frozenset[str]


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds and rows, and its 95 % interval over both; nan bounds where rows are not known."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval leaves out zero, else "unclear"."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "unclear"


def all_cocktails(ingredients: Sequence[str]) -> list[Cocktail]:
    """Return the 2^k - 1 cocktails of k ingredients, small ones first, in the order of the ingredients."""
    sizes = range(1, len(ingredients) + 1)
    return [frozenset(chosen) for size in sizes for chosen in combinations(ingredients, size)]


def usual_cocktails(ingredients: Sequence[str]) -> list[Cocktail]:
    """Return every ingredient alone, every pair, all but each, and all: about k^2 / 2 in place of 2^k - 1."""
    sizes = {1, 2, len(ingredients) - 1, len(ingredients)}
    return [one for one in all_of_sizes(ingredients, sizes) if one]


def all_of_sizes(ingredients: Sequence[str], sizes: set[int]) -> list[Cocktail]:
    """Return the cocktails with so many ingredients, small ones first."""
    return [frozenset(chosen) for size in sorted(sizes) for chosen in combinations(ingredients, size)]


def sampled_cocktails(ingredients: Sequence[str], count: int, seed: int) -> list[Cocktail]:
    """Return every ingredient alone, all together, and ``count`` others drawn without replacement."""
    k = len(ingredients)
    sure = all_of_sizes(ingredients, {1, k})
    draw, drawn = Random(f"cocktails/{seed}"), dict[Cocktail, None]()
    possible = 2**k - 1 - len(sure)
    while len(drawn) < min(count, possible):
        number = draw.randrange(1, 2**k)
        one = frozenset(name for place, name in enumerate(ingredients) if number >> place & 1)
        if one not in sure:
            drawn[one] = None
    place_of = {name: place for place, name in enumerate(ingredients)}
    return sorted([*sure, *drawn], key=lambda one: (len(one), sorted(place_of[name] for name in one)))


def cocktail_name(cocktail: Cocktail) -> str:
    """Return a cocktail's name, the same in whatever order its ingredients are given: "fpb+headline"."""
    return "+".join(sorted(cocktail))


def shapley_weights(players: Sequence[str]) -> dict[str, dict[Cocktail, float]]:
    """Return every player's weight of every coalition's value: phi_X = sum_S weight[X][S] v(S).

    Args:
        players: k of them; 2^k coalitions, the empty one among them.
    """
    k = len(players)
    weights: dict[str, dict[Cocktail, float]] = {}
    for player in players:
        others = [one for one in players if one != player]
        weights[player] = {}
        for rest in [frozenset[str](), *all_cocktails(others)]:
            share = math.factorial(len(rest)) * math.factorial(k - len(rest) - 1) / math.factorial(k)
            weights[player][rest | {player}] = share
            weights[player][rest] = -share
    return weights


def least_squares_weights(players: Sequence[str], coalitions: Sequence[Cocktail]) -> dict[str, dict[Cocktail, float]]:
    """Return every player's weight of every coalition's value in the least-squares main effects.

    Where the coalitions cannot tell two players apart, their effect is shared between them (minimum norm).
    """
    design_CP = np.array([[1.0, *(float(player in one) for player in players)] for one in coalitions])
    inverse_PC = np.linalg.pinv(design_CP)
    return {
        player: dict(zip(coalitions, inverse_PC[place + 1].tolist(), strict=True))
        for place, player in enumerate(players)
    }


def effects_of(players: Sequence[str], coalitions: Sequence[Cocktail]) -> tuple[str, dict[str, dict[Cocktail, float]]]:
    """Return which effects can be told, "Shapley" or "least squares", and their weights."""
    if len(set(coalitions)) == 2 ** len(players):
        return "Shapley", shapley_weights(players)
    return "least squares", least_squares_weights(players, coalitions)


def weighted(weights: Mapping[Cocktail, float], scores_Kn: Mapping[Cocktail, np.ndarray]) -> np.ndarray:
    """Return the weighted sum of the scores of cocktails, float64 [K, n]."""
    return np.sum([weight * scores_Kn[one] for one, weight in weights.items()], axis=0)


def estimate(value_Kn: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return the mean of values of seeds and rows, and the 95 % interval of resampled seeds and rows.

    Both levels are drawn anew in each of the resamples, rows alike for all seeds. A single column (a metric that is no
    mean over rows) resamples seeds alone.

    Args:
        value_Kn: float64 [K, n], of one weighted sum of cocktails.
    """
    generator = np.random.default_rng(seed)
    K, n = value_Kn.shape
    weight_RK = generator.multinomial(K, np.full(K, 1 / K), size=RESAMPLES) / K
    chunk = max(1, 1_000_000 // n)  # bounds the memory of large test sets
    mean_R = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, chunk):
        rows = slice(start, min(RESAMPLES, start + chunk))
        drawn_Rn = generator.integers(0, n, (rows.stop - start, n))
        mean_RK = np.stack([value_n[drawn_Rn].mean(axis=1) for value_n in value_Kn], axis=1)
        mean_R[rows] = (weight_RK[rows] * mean_RK).sum(axis=1)
    low, high = np.percentile(mean_R, TAILS)
    return Estimate(float(value_Kn.mean()), float(low), float(high))


def selected(validation: Mapping[Cocktail, float]) -> Cocktail:
    """Return the cocktail with the best score on validation rows; of equals the smaller one, then by name."""
    return min(validation, key=lambda one: (-validation[one], len(one), cocktail_name(one)))
