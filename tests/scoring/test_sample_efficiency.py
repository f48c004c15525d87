"""How many examples reach a score: isotonic, on a line in the logarithm, monotone, and None where none does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.scoring.sample_efficiency import examples_to_reach, needed_over_tasks, non_decreasing

BUDGETS = (10, 100, 1000)
CURVES = st.lists(st.floats(0, 1), min_size=3, max_size=3)


def test_between_two_budgets_it_lies_on_a_line_in_the_logarithm():
    assert examples_to_reach(0.5, BUDGETS, [0.2, 0.8, 0.9]) == pytest.approx(10**1.5)
    assert examples_to_reach(0.2, BUDGETS, [0.2, 0.8, 0.9]) == 10
    assert examples_to_reach(0.1, BUDGETS, [0.2, 0.8, 0.9]) == 10
    assert examples_to_reach(0.8, BUDGETS, [0.2, 0.8, 0.9]) == pytest.approx(100)


def test_a_score_out_of_reach_is_none_and_not_the_largest_budget():
    assert examples_to_reach(0.95, BUDGETS, [0.2, 0.8, 0.9]) is None
    assert examples_to_reach(0.85, BUDGETS, [0.2, 0.9, 0.6]) is None, "the peak is smoothed to 0.75"


@given(CURVES, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_score_never_needs_fewer(curve, one, other):
    needed = [examples_to_reach(score, BUDGETS, curve) for score in sorted((one, other))]
    low, high = (math.inf if found is None else found for found in needed)
    assert low <= high * (1 + 1e-12)


@given(CURVES)
def test_smoothing_is_the_isotonic_regression_and_leaves_rising_curves_alone(curve):
    sklearn = pytest.importorskip("sklearn.isotonic")
    smooth = non_decreasing(curve)
    assert smooth == pytest.approx(sklearn.isotonic_regression(curve), abs=1e-9)
    assert non_decreasing(sorted(curve)).tolist() == sorted(curve)


@pytest.mark.parametrize("budgets", [(10, 10, 100), (0, 1, 2), (1, 2)])
def test_budgets_that_do_not_rise_are_refused(budgets):
    with pytest.raises(ValueError, match="have to increase"):
        examples_to_reach(0.5, budgets, [0.1, 0.2, 0.3])


def test_the_bootstrap_is_over_tasks():
    alike = needed_over_tasks(0.5, BUDGETS, np.array([[0.2, 0.8, 0.9]] * 4))
    assert alike.examples == alike.low == alike.high == pytest.approx(10**1.5)
    assert alike.reached == 1.0
    mixed = needed_over_tasks(0.5, BUDGETS, np.array([[0.6, 0.8, 0.9], [0.0, 0.1, 0.55]]), seed=1)
    assert mixed.low == 10
    assert mixed.low < mixed.examples < mixed.high
    some = needed_over_tasks(0.85, BUDGETS, np.array([[0.2, 0.8, 0.9], [0.0, 0.1, 0.2]]))
    assert (some.examples, some.high) == (None, None)
    assert 0 < some.reached < 1
