"""The alignment of tasks' gradients, by hand-made losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multitune.training.alignment import gradient_alignment, gradient_cosines


def test_cosines_of_gradients_that_are_known() -> None:
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    directions = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]])
    losses = [(direction * weight).sum() for direction in directions]
    half = 0.5**0.5
    expected = torch.tensor(
        [[1, 0, -1, half], [0, 1, 0, half], [-1, 0, 1, -half], [half, half, -half, 1]], dtype=torch.float64
    )
    torch.testing.assert_close(gradient_cosines(iter(losses), [weight, other]), expected)
    losses = [(direction * weight).sum() for direction in directions]
    assert gradient_alignment(losses, [weight]) == pytest.approx((0 - 1 + half + 0 + half - half) / 6)


def test_a_parameter_that_a_task_does_not_reach_is_orthogonal_to_it() -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    assert gradient_alignment([one.sum(), two.sum()], [one, two]) == 0.0


def test_one_task_has_no_pairs() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="nothing to be aligned with"):
        gradient_alignment([weight.sum()], [weight])
