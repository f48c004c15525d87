"""Bootstrap intervals: known widths, no spread where there is none, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from multitune.scoring.intervals import interval_of_corpus_metric, interval_of_mean


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    value_n = np.array([0.0, 1.0] * 200)
    low, high = interval_of_mean(value_n, seed=0, resamples=4000)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert low == pytest.approx(0.5 - half, abs=0.006)
    assert high == pytest.approx(0.5 + half, abs=0.006)
    assert interval_of_mean(value_n, seed=0, resamples=4000) == (low, high)


@pytest.mark.parametrize("value_n", [np.ones(7), np.array([0.25])])
def test_equal_values_have_no_spread(value_n):
    assert interval_of_mean(value_n, seed=1) == (value_n[0], value_n[0])


def mean_of_predictions(predictions, references) -> float:
    return float(np.mean(predictions))


def test_a_corpus_metric_that_is_a_mean_has_the_interval_of_the_mean():
    value_n = np.random.default_rng(0).random(100)
    ours = interval_of_corpus_metric(mean_of_predictions, value_n.tolist(), [0] * 100, seed=0)
    assert ours == pytest.approx(interval_of_mean(value_n, seed=1), abs=0.02)


def test_predictions_stay_with_their_references():
    pairs = list(range(50))

    def misplaced(predictions, references) -> float:
        return float(sum(a != b for a, b in zip(predictions, references, strict=True)))

    assert interval_of_corpus_metric(misplaced, pairs, pairs, seed=0) == (0.0, 0.0)


def test_resamples_without_a_value_are_left_out():
    def undefined_without_a_one(predictions, references) -> float:
        return 1.0 if 1 in predictions else float("nan")

    assert interval_of_corpus_metric(undefined_without_a_one, [0, 1], [0, 1], seed=0) == (1.0, 1.0)
    assert all(math.isnan(x) for x in interval_of_corpus_metric(undefined_without_a_one, [0, 0], [0, 1], seed=0))
