"""Uncertainty weighting against the joint loss of the paper, by autograd and torch.optim.Adam."""

from __future__ import annotations

import pytest
import torch

from multitune.objectives.balancing.config import UncertaintyConfig
from multitune.objectives.balancing.uncertainty import Uncertainty

EVERY = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(("likelihood", "k"), [("classification", 1.0), ("regression", 0.5)])
def test_equals_the_joint_step_of_the_paper(likelihood, k):
    """Model and log-variances move at once on three quadratic losses of one parameter vector."""
    centres = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 1.0]], dtype=torch.float64)
    uncertainty = Uncertainty(UncertaintyConfig(likelihood=likelihood, learning_rate=0.05), 3, seed=0)
    ours = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    theirs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=0.05)
    for step in range(1, 30):
        joint = (k * (-s).exp() * (theirs - centres).square().sum(1) + s / 2).sum()
        optimizer.zero_grad()
        theirs.grad = None
        joint.backward()
        scale = (k * (-s).exp()).sum().item()

        loss_T = (ours - centres).square().sum(1)
        (gradient,) = torch.autograd.grad((uncertainty.weights(None, EVERY) * loss_T).sum(), ours)
        assert torch.allclose(gradient * scale, theirs.grad, atol=1e-10)
        with torch.no_grad():
            ours -= 0.01 * scale * gradient
            theirs -= 0.01 * theirs.grad
        optimizer.step()
        uncertainty.observe(step, loss_T, EVERY)
        assert torch.allclose(uncertainty.s_T, s.detach(), atol=1e-10)


def test_constant_losses_end_with_weights_inverse_to_them():
    """At rest exp(-s_i) = 1 / (2 L_i)."""
    uncertainty = Uncertainty(UncertaintyConfig(learning_rate=0.05), 3, seed=0)
    losses = torch.tensor([0.5, 1.0, 4.0])
    for step in range(1, 400):
        uncertainty.observe(step, losses, EVERY)
    expected = (1 / losses) / (1 / losses).sum()
    assert uncertainty.weights(None, EVERY).tolist() == pytest.approx(expected.tolist(), abs=1e-4)
