"""FAMO: the worked step of card 20, and the published loss by autograd and torch.optim.Adam."""

from __future__ import annotations

import pytest
import torch

from multitune.objectives.balancing.config import FamoConfig
from multitune.objectives.balancing.famo import Famo

BOTH = torch.tensor([True, True])


def test_worked_gradient_and_first_step():
    famo = Famo(FamoConfig(), 2, seed=0)
    before, after = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.9])
    assert famo.weights(before, BOTH).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-7)
    famo.observe(0, before, BOTH)
    famo.observe(1, after, BOTH)
    assert famo.xi_T.tolist() == pytest.approx([-0.025, 0.025], abs=1e-7)


def test_on_training_losses_the_comparison_is_with_the_same_batch_before_the_step():
    famo = Famo(FamoConfig(losses="training"), 2, seed=0)
    assert famo.observes == "training" and not famo.config.needs_validation
    famo.weights(torch.tensor([1.0, 2.0]), BOTH)
    famo.observe(1, torch.tensor([0.5, 1.9]), BOTH)
    assert famo.xi_T.tolist() == pytest.approx([-0.025, 0.025], abs=1e-7)
    famo.weights(torch.tensor([9.0, 7.0]), BOTH)  # the next batch is harder: no increase may be read from that
    assert famo.previous_T.tolist() == [9.0, 7.0]


def test_many_steps_equal_autograd_and_torch_adam():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(12, 4, generator=generator, dtype=torch.float64) + 0.6
    config = FamoConfig(minimum_loss=0.5)
    famo = Famo(config, 4, seed=0)
    xi = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([xi], lr=0.025, weight_decay=0.01)
    every = torch.ones(4, dtype=torch.bool)
    famo.observe(0, losses[0], every)
    for step in range(1, 12):
        train = losses[step].flip(0).clone().requires_grad_()
        distance = train - 0.5 + 1e-8
        z = xi.detach().softmax(0)
        (expected,) = torch.autograd.grad((z * distance.log()).sum() / (z / distance).sum().detach(), train)
        assert torch.allclose(famo.weights(train, every), expected, atol=1e-12)
        delta = (losses[step - 1] - 0.5 + 1e-8).log() - (losses[step] - 0.5 + 1e-8).log()
        optimizer.zero_grad()
        (xi.softmax(0) @ delta).backward()
        optimizer.step()
        famo.observe(step, losses[step], every)
        assert torch.allclose(famo.xi_T, xi.detach(), atol=1e-12)


def test_a_task_without_a_loss_keeps_its_logit_and_its_moments():
    famo = Famo(FamoConfig(), 3, seed=0)
    every = torch.ones(3, dtype=torch.bool)
    famo.observe(0, torch.tensor([1.0, 1.0, 1.0]), every)
    famo.observe(1, torch.tensor([0.5, 0.9, 0.7]), every)
    xi, moments = famo.xi_T.clone(), famo.moments_3T.clone()
    famo.observe(2, torch.tensor([0.4, float("nan"), 0.1]), torch.tensor([True, False, True]))
    assert famo.xi_T[1] == xi[1] and torch.equal(famo.moments_3T[:, 1], moments[:, 1])
    assert (famo.xi_T != xi).tolist() == [True, False, True]
    assert famo.previous_T.tolist() == pytest.approx([0.4, 0.9, 0.1])


def test_a_loss_at_or_below_the_minimum_stays_finite():
    famo = Famo(FamoConfig(minimum_loss=1.0), 2, seed=0)
    assert torch.isfinite(famo.weights(torch.tensor([0.5, 2.0]), BOTH)).all()
    famo.observe(0, torch.tensor([1.5, 2.0]), BOTH)
    famo.observe(1, torch.tensor([0.5, 2.0]), BOTH)
    assert torch.isfinite(famo.xi_T).all()
