from __future__ import annotations

import math

import pytest

from multitune.scoring.continual import backward_transfer, overall_performance


def test_the_hand_matrix_of_the_card() -> None:
    scores = [[0.9, math.nan], [0.6, 0.8]]
    assert overall_performance(scores) == pytest.approx(0.70, abs=1e-15)
    assert backward_transfer(scores, "t") == pytest.approx(-0.15, abs=1e-15)
    assert backward_transfer(scores, "t-1") == pytest.approx(-0.30, abs=1e-15)


def test_nothing_forgotten_is_no_transfer_and_one_round_has_none() -> None:
    assert backward_transfer([[0.5], [0.5, 0.7], [0.5, 0.7, 0.1]]) == 0
    assert overall_performance([[0.5]]) == 0.5
    assert math.isnan(backward_transfer([[0.5]]))


@pytest.mark.parametrize("scores", [[], [[]], [[0.5], [0.5]]])
def test_missing_scores_are_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"scored|scores"):
        overall_performance(scores)
