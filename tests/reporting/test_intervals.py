"""Intervals of means over tasks: equal say, no examples left unpaired, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from multitune.reporting.intervals import aligned_differences, interval_of_task_mean
from multitune.scoring.predictions import Prediction
from multitune.scoring.significance import paired_difference


def answer(name: str, score: float) -> Prediction:
    return Prediction(name, "file:1", "prompt", "a", "b", None, score)


def test_examples_are_paired_by_id_and_occurrence():
    before = [answer("a", 0), answer("a", 1), answer("b", 0), answer("only before", 1)]
    after = [answer("b", 1), answer("a", 0.5), answer("a", 0)]
    assert aligned_differences([(before, after)]).tolist() == [[1, 0.5, -1]]


def test_runs_share_their_examples():
    first = ([answer("a", 0), answer("b", 0)], [answer("a", 1), answer("b", 1)])
    second = ([answer("b", 0)], [answer("b", 0)])
    assert aligned_differences([first, second]).tolist() == [[1], [0]]


def test_no_spread_gives_no_width():
    constants = [np.full((3, 10), 0.2), np.full((3, 500), 0.4)]
    assert interval_of_task_mean(constants) == pytest.approx((0.3, 0.3))


def test_every_task_has_the_same_say_whatever_its_size():
    generator = np.random.default_rng(0)
    small, large = generator.normal(1, 1, (1, 20)), generator.normal(0, 1, (1, 2000))
    low, high = interval_of_task_mean([small, large])
    assert low < (small.mean() + large.mean()) / 2 < high
    pooled = np.concatenate([small, large], axis=1).mean()
    assert not low < pooled < high


def test_one_task_agrees_with_the_paired_bootstrap_of_scoring():
    generator = np.random.default_rng(1)
    before = [answer(str(i), float(x)) for i, x in enumerate(generator.normal(0, 1, 200))]
    after = [answer(str(i), float(x)) for i, x in enumerate(generator.normal(0.5, 1, 200))]
    found = paired_difference(before, after)
    low, high = interval_of_task_mean([aligned_differences([(before, after)])])
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.03)


def test_the_same_seed_gives_the_same_interval():
    difference = [np.random.default_rng(2).normal(0, 1, (2, 50))]
    assert interval_of_task_mean(difference, seed=3) == interval_of_task_mean(difference, seed=3)
    assert interval_of_task_mean(difference, seed=3) != interval_of_task_mean(difference, seed=4)
