"""Adam on one number per task."""

from __future__ import annotations

import torch

from multitune.objectives.balancing.adam import adam, no_moments


def test_every_task_moves_as_torch_adam_moves_it_at_the_steps_where_it_is_present():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    present = torch.rand(20, 4, generator=generator) < 0.6
    value, moments = torch.linspace(-1, 1, 4, dtype=torch.float64), no_moments(4)
    start = value
    for gradient, active in zip(gradients, present, strict=True):
        value, moments = adam(value, gradient, moments, active, 0.03, weight_decay=0.1)
    for task in range(4):
        alone = start[task].clone().requires_grad_()
        optimizer = torch.optim.Adam([alone], lr=0.03, weight_decay=0.1)
        for gradient in gradients[present[:, task], task]:
            alone.grad = gradient.clone()
            optimizer.step()
        assert torch.allclose(value[task], alone.detach(), atol=1e-14)


def test_nan_at_absent_tasks_stays_out():
    gradient = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    value, moments = adam(
        torch.zeros(2, dtype=torch.float64), gradient, no_moments(2), torch.tensor([True, False]), 0.1
    )
    assert torch.isfinite(value).all() and torch.isfinite(moments).all() and value[1] == 0
