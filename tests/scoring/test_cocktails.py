"""Invariants of card 07: the enumeration of cocktails, Shapley's axioms, least squares, selection, intervals."""

from __future__ import annotations

from itertools import permutations
from math import comb
from random import Random

import numpy as np
import pytest

from multitune.scoring.cocktails import (
    all_cocktails,
    cocktail_name,
    effects_of,
    estimate,
    least_squares_weights,
    sampled_cocktails,
    selected,
    shapley_weights,
    usual_cocktails,
    weighted,
)

FOUR = ("A", "B", "C", "D")


def coalitions(players):
    return [frozenset(), *all_cocktails(players)]


def effects(weights, v):
    return {player: sum(w * v[one] for one, w in by.items()) for player, by in weights.items()}


@pytest.mark.parametrize("k", range(1, 7))
def test_there_are_two_to_the_k_minus_one_cocktails(k):
    names = [f"task{i}" for i in range(k)]
    found = all_cocktails(names)
    assert len(found) == len(set(found)) == 2**k - 1
    assert found[:k] == [frozenset([name]) for name in names]  # a single arm is a cocktail of size one
    assert sum(len(one) == 2 and names[0] in one for one in found) == k - 1
    assert len(usual_cocktails(names)) == sum(comb(k, size) for size in {1, 2, k - 1, k} if size > 0)


def test_a_name_does_not_depend_on_the_order():
    assert len({cocktail_name(frozenset(order)) for order in permutations("cab")}) == 1
    assert cocktail_name(frozenset("cab")) == "a+b+c"
    assert len({cocktail_name(one) for one in all_cocktails(FOUR)}) == 15


def test_a_sample_holds_the_singles_all_and_so_many_others_once():
    found = sampled_cocktails(FOUR, 4, seed=1)
    assert len(found) == len(set(found)) == 9 and found == sampled_cocktails(FOUR, 4, seed=1)
    assert set(map(frozenset, FOUR)) <= set(found) and frozenset(FOUR) in found
    assert len(sampled_cocktails(FOUR, 99, seed=1)) == 15
    assert sampled_cocktails(("A",), 3, seed=0) == [frozenset("A")]


def test_shapley_of_the_worked_example():
    v = dict(zip(coalitions("AB"), (50.0, 54.0, 52.0, 60.0), strict=True))
    assert effects(shapley_weights("AB"), v) == pytest.approx({"A": 6.0, "B": 4.0})


def test_shapley_is_efficient_symmetric_and_gives_a_dummy_nothing():
    draw = Random(0)
    v = {one: draw.gauss(0, 1) for one in coalitions(FOUR)}
    phi = effects(shapley_weights(FOUR), v)
    assert sum(phi.values()) == pytest.approx(v[frozenset(FOUR)] - v[frozenset()])
    alike = {one: float(len(one - {"D"})) ** 2 for one in coalitions(FOUR)}  # A, B, C alike, D does nothing
    phi = effects(shapley_weights(FOUR), alike)
    assert phi["A"] == pytest.approx(phi["B"]) == pytest.approx(phi["C"])
    assert phi["D"] == pytest.approx(0.0, abs=1e-12)


def test_least_squares_recovers_additive_effects_from_all_and_from_some_cocktails():
    true = {"A": 3.0, "B": -1.0, "C": 0.5, "D": 0.0}
    some = [frozenset(), *map(frozenset, ("A", "B", "C", "D", "ABC", "BCD"))]
    for trained in (coalitions(FOUR), some):
        v = {one: 10 + sum(true[name] for name in one) for one in trained}
        assert effects(least_squares_weights(FOUR, trained), v) == pytest.approx(true)
    assert effects_of(FOUR, some)[0] == "least squares" and effects_of(FOUR, coalitions(FOUR))[0] == "Shapley"


def test_selection_is_the_best_of_validation_and_of_equals_the_smaller():
    found = {frozenset("T"): 0.7, frozenset("TA"): 0.8, frozenset("TAB"): 0.8, frozenset("TB"): 0.8}
    assert selected(found) == frozenset("TA")
    assert selected(dict(reversed(found.items()))) == frozenset("TA")


def test_an_estimate_resamples_seeds_and_rows():
    draw = np.random.default_rng(0)
    value_Kn = draw.normal(0.1, 1.0, (5, 400))
    found = estimate(value_Kn)
    assert found.value == pytest.approx(value_Kn.mean()) and found.low < found.value < found.high
    by_seed = np.repeat([[-1.0], [1.0], [-2.0], [2.0], [0.1]], 400, axis=1)  # rows of a seed are all alike
    wide = estimate(by_seed)
    assert wide.high - wide.low > 5 * (found.high - found.low) and wide.verdict == "unclear"
    assert estimate(np.full((3, 7), 0.25)) == estimate(np.full((3, 1), 0.25))
    assert estimate(np.full((3, 7), 0.25)).verdict == "better"


def test_a_weighted_sum_is_linear_and_the_target_alone_gains_exactly_nothing():
    scores = {frozenset("T"): np.ones((2, 3)), frozenset("TA"): np.full((2, 3), 4.0)}
    assert (weighted({frozenset("TA"): 1.0, frozenset("T"): -1.0}, scores) == 3.0).all()
    same = weighted({frozenset("T"): 0.0}, scores)
    assert estimate(same) == estimate(np.zeros((2, 3)))
