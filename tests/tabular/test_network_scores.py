"""AUROC, explained variance, and the gain over single-task models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from multitune.errors import MultituneError
from multitune.tabular import multitask_gain
from multitune.tabular.network_scores import area_under_curve, explained_variance


def test_the_gain_is_the_worked_example():
    assert multitask_gain([0.9, 0.2], [0.8, 0.25], [False, True]) == pytest.approx(16.25)


def test_a_model_gains_nothing_on_itself():
    assert multitask_gain([0.3, 0.7, 2.0], [0.3, 0.7, 2.0], [True, False, True]) == 0


@pytest.mark.parametrize("baseline", [0.0, -0.1, math.nan])
def test_a_baseline_that_learned_nothing_is_refused(baseline):
    with pytest.raises(MultituneError, match="says nothing"):
        multitask_gain([0.5, 0.5], [0.5, baseline])


def test_lengths_that_differ_are_refused():
    with pytest.raises(MultituneError, match="2 scores, 1 baselines and 1 directions"):
        multitask_gain([0.5, 0.5], [0.5], [False])
    with pytest.raises(MultituneError, match="0 scores"):
        multitask_gain([], [])


def test_areas_are_means_over_the_classes_that_can_be_told_apart():
    probabilities = np.array([[0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.4, 0.6, 0.0]])
    labels = np.array([0.0, 1.0, 1.0, 0.0])
    # class 0 above the rest and class 1 above the rest, in all 4 pairs; class 2 has no row
    assert area_under_curve(labels, probabilities) == pytest.approx(1.0)
    assert area_under_curve(labels, probabilities[:, :2]) == pytest.approx(1.0)
    assert math.isnan(area_under_curve(np.zeros(4), probabilities[:, :2]))


def test_explained_variance_is_blind_to_bias():
    values = np.array([1.0, 2.0, 3.0])
    assert explained_variance(values, values + 10) == pytest.approx(1.0)
    assert explained_variance(values, np.zeros(3)) == pytest.approx(0.0)
    assert math.isnan(explained_variance(np.ones(3), values))
    assert math.isnan(explained_variance(values[:1], values[:1]))
