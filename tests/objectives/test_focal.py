"""Focal losses: the worked batch of card 20, and gradients against the definition written out."""

from __future__ import annotations

from math import exp

import pytest
import torch

from multitune.objectives.aggregation import count, token_weights
from multitune.objectives.focal import sample_coefficients, task_coefficients, task_means

# task a (0): NLLs [1, 2] and [4, 4, 4, 4]; task b (1): [3]
NLL = torch.tensor([1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 3.0], dtype=torch.float64)
TASK = torch.tensor([0, 0, 0, 0, 0, 0, 1])
EXAMPLE = torch.tensor([7, 7, 3, 3, 3, 3, 11])
ONES = torch.ones(2)


def coefficients(level, nll, task, example, tasks=2, gamma=2.0, alpha=ONES, detach=False, weights=None):
    counts = count(task, example, tasks)
    weight = token_weights("task_sample_mean", task, counts, torch.ones(tasks) if weights is None else weights)
    if level == "sample":
        return sample_coefficients(nll, task, example, weight, alpha, gamma, detach)
    return task_coefficients(*task_means(nll, task, counts), task, weight, alpha, gamma, detach)


def value(level, **options):
    a, _ = coefficients(level, NLL, TASK, EXAMPLE, **options)
    return (a * NLL).sum().item()


@pytest.mark.parametrize(("level", "expected"), [("sample", 2.528096), ("task", 2.383258)])
def test_worked_batch(level, expected):
    assert value(level) == pytest.approx(expected, abs=1e-6)


def test_worked_batch_by_hand():
    """2.5280954...: the card's last digit of the sample level is one too high."""
    p, q = [(exp(-1) + exp(-2)) / 2, exp(-4), exp(-3)], [-1.5, -4, -3]
    first, second, third = [-((1 - p) ** 2) * q for p, q in zip(p, q, strict=True)]
    assert value("sample") == pytest.approx(((first + second) / 2 + third) / 2, abs=1e-12)


@pytest.mark.parametrize("level", ["sample", "task"])
def test_gamma_zero_is_the_task_sample_mean(level):
    a, b = coefficients(level, NLL, TASK, EXAMPLE, gamma=0.0)
    assert (a * NLL).sum().item() == pytest.approx(2.875, abs=1e-6)
    assert torch.all(b == 0)


@pytest.mark.parametrize("level", ["sample", "task"])
def test_alpha_scales_its_task_only(level):
    both = value(level)
    only_b = value(level, alpha=torch.tensor([0.0, 1.0]))
    assert value(level, alpha=torch.tensor([2.0, 1.0])) == pytest.approx(2 * both - only_b, rel=1e-6)


@pytest.mark.parametrize("level", ["sample", "task"])
def test_task_weights_enter_as_in_every_task_mean(level):
    a_alone = 2 * value(level, alpha=torch.tensor([1.0, 0.0]))
    b_alone = 2 * value(level, alpha=torch.tensor([0.0, 1.0]))
    weighted = value(level, weights=torch.tensor([3.0, 1.0]))
    assert weighted == pytest.approx((3 * a_alone + b_alone) / 4, rel=1e-6)


def definition(level, nll, task, example, gamma, alpha, detach):
    """The loss of the paper, example by example."""
    losses = []
    for t in task.unique():
        ids = example[task == t].unique()
        p = torch.stack([(-nll[example == e]).exp().mean() for e in ids])
        q = torch.stack([(-nll[example == e]).mean() for e in ids])
        if level == "task":
            p, q = p.mean(), q.mean()
        factor = (1 - p) ** gamma
        losses.append((-alpha[t] * (factor.detach() if detach else factor) * q).mean())
    return torch.stack(losses).mean()


def random_step():
    generator = torch.Generator().manual_seed(5)
    example = torch.randint(0, 12, (80,), generator=generator).sort().values
    task = example % 4  # task 4 of 5 is absent
    theta = torch.randn(80, generator=generator, dtype=torch.float64, requires_grad=True)
    return theta, task, example, torch.tensor([1.0, 0.5, 2.0, 0.25, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("level", ["sample", "task"])
def test_micro_batches_of_a_linear_loss_have_value_and_gradient_of_the_whole(level, gamma, detach):
    theta, task, example, alpha = random_step()
    nll = torch.nn.functional.softplus(theta)
    whole = definition(level, nll, task, example, gamma, alpha, detach)
    (expected,) = torch.autograd.grad(whole, theta, retain_graph=True)

    counts = count(task, example, 5)
    weight = token_weights("task_sample_mean", task, counts, torch.ones(5)).double()
    means = task_means(nll, task, counts)
    total, gradient = 0.0, torch.zeros_like(theta)
    for part in (example < 4, (example >= 4) & (example < 9), example >= 9):
        n, t, w = nll[part], task[part], weight[part]
        if level == "sample":
            a, b = sample_coefficients(n, t, example[part], w, alpha, gamma, detach)
        else:
            a, b = task_coefficients(*means, t, w, alpha, gamma, detach)
        assert not a.requires_grad and not b.requires_grad
        total += (a * n).sum().item()
        gradient += torch.autograd.grad((a * n + b * (-n).exp()).sum(), theta, retain_graph=True)[0]
    assert total == pytest.approx(whole.item(), rel=1e-6)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-9)


def test_task_means_of_two_processes_are_those_of_one():
    _, task, example, _ = random_step()
    nll = torch.linspace(0.01, 4, 80)
    whole = task_means(nll, task, count(task, example, 5))
    parts = [example < 6, example >= 6]
    counted = []
    for part in parts:
        count(task[part], example[part], 5, reduce=lambda local: counted.append(local) or local)
    sums = []
    for part in parts:
        counts = count(task[part], example[part], 5, reduce=lambda local: sum(counted))
        task_means(nll[part], task[part], counts, reduce=lambda local: sums.append(local) or local)
    for a, b in zip(whole, sum(sums), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("level", ["sample", "task"])
def test_tokens_known_by_heart_give_no_nan(level, gamma):
    a, b = coefficients(level, torch.zeros(7), TASK, EXAMPLE, gamma=gamma)
    assert torch.isfinite(a).all() and torch.isfinite(b).all()


@pytest.mark.parametrize("level", ["sample", "task"])
def test_nothing_labelled_gives_no_coefficients(level):
    empty = torch.zeros(0, dtype=torch.long)
    a, b = coefficients(level, torch.zeros(0), empty, empty)
    assert a.shape == b.shape == (0,)
