"""Statistics over seeds agree with worked numbers, and with scipy where it has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.scoring.seeds import holm, paired_seed_difference, sign_test, t_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)]
)
def test_quantiles_of_t_are_those_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, rel=1e-5)


def test_quantiles_of_t_agree_with_scipy():
    from scipy.stats import t

    for degrees in (*range(1, 40), 200):
        assert t_quantile(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=1e-9)


def test_three_seeds_worked_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, 2 +- 4.30265 / sqrt(3)
    found = paired_seed_difference([10, 20, 30], [11, 22, 33], seed=0)
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert (found.seeds, found.wins, found.losses, found.sign_test_p) == (3, 3, 0, 0.25)


def test_agrees_with_the_paired_t_test():
    from scipy.stats import ttest_rel

    before, after = [0.61, 0.58, 0.66, 0.60, 0.63], [0.65, 0.57, 0.71, 0.66, 0.64]
    found = paired_seed_difference(before, after, seed=1)
    interval = ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_many_skewed_differences_widen_to_the_bootstrap():
    after = [0.0] * 99 + [100.0]  # t is symmetric and ends below the bootstrap's upper bound
    found = paired_seed_difference([0.0] * 100, after, seed=0)
    drawn = np.random.default_rng(0).integers(0, 100, (2000, 100))
    assert found.high == np.percentile(np.array(after)[drawn].mean(axis=1), 97.5)
    assert found.low < 0


def test_one_seed_bounds_nothing():
    found = paired_seed_difference([0.5], [0.9], seed=0)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.sign_test_p == 1


def test_equal_differences_leave_no_width_and_ties_are_no_wins():
    found = paired_seed_difference([1, 2, 3], [1, 2, 3], seed=0)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert (found.wins, found.losses, found.sign_test_p) == (0, 0, 1)


@pytest.mark.parametrize(("before", "after"), [([1.0], [1.0, 2.0]), ([], [])])
def test_scores_without_a_partner_are_refused(before, after):
    with pytest.raises(ValueError, match="paired by seed"):
        paired_seed_difference(before, after, seed=0)


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(5, 0, 1 / 16), (6, 0, 1 / 32), (9, 1, 22 / 1024), (3, 3, 1.0), (0, 0, 1.0)]
)
def test_the_sign_test_is_exact(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p, rel=1e-12)
    assert sign_test(losses, wins) == sign_test(wins, losses)


def test_holm_worked_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1; the last may not fall below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_helps_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    by_p = [q for _, q in sorted(zip(p_values, corrected, strict=True))]
    assert by_p == sorted(by_p)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_swapping_the_sides_mirrors_the_difference(pairs):
    before, after = [list(side) for side in zip(*pairs, strict=True)]
    there = paired_seed_difference(before, after, seed=0, resamples=50)
    back = paired_seed_difference(after, before, seed=0, resamples=50)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.low <= there.mean + 1e-12 and there.mean - 1e-12 <= there.high
    assert there.low == pytest.approx(-back.high, abs=1e-9)
