"""Balancers of gradients against implementations on explicit vectors, written another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from multitune.objectives.balancing.balancers import make_balancer
from multitune.objectives.balancing.cagrad import conflict_averse
from multitune.objectives.balancing.config import CAGradConfig, GradNormConfig, NashConfig, PCGradConfig
from multitune.objectives.balancing.gradnorm import GradNorm
from multitune.objectives.balancing.nash import NashMTL, bargain
from multitune.objectives.balancing.pcgrad import projections

NAMES = ("a", "b", "c", "d", "e")


def conflicting(tasks=4, width=6, seed=0):
    """Random task gradients of very different lengths, some at obtuse angles."""
    random = np.random.default_rng(seed)
    return random.normal(size=(tasks, width)) * np.array([1.0, 0.1, 5.0, 1.0, 30.0])[:tasks, None]


def coefficients(config, gradients, present=None):
    tasks = len(gradients)
    gram = torch.from_numpy(gradients @ gradients.T)
    present = torch.ones(tasks, dtype=torch.bool) if present is None else torch.tensor(present)
    return make_balancer(config, NAMES[:tasks], seed=0).coefficients(gram, torch.ones(tasks), present).numpy()


# -- PCGrad ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_pcgrad_equals_projections_of_explicit_vectors(seed):
    gradients = conflicting(seed=seed)
    random = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(4, generator=random) for _ in range(4)]
    projected = []
    for i, order in enumerate(orders):
        g = gradients[i].copy()
        for j in order.tolist():
            if j != i and g @ gradients[j] < 0:
                unit = gradients[j] / np.linalg.norm(gradients[j])
                g -= (g @ unit) * unit
        projected.append(g)
    ours = projections(torch.from_numpy(gradients @ gradients.T), orders).numpy() @ gradients
    assert np.allclose(ours, projected, atol=1e-12)


def test_pcgrad_of_two_conflicting_gradients():
    """g1 = (1, 0), g2 = (-1, 1): g1 becomes (1/2, 1/2), g2 (0, 1); their mean is (1/4, 3/4)."""
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    c = coefficients(PCGradConfig(), gradients)
    assert (c @ gradients).tolist() == pytest.approx([0.25, 0.75])


# -- CAGrad ----------------------------------------------------------------------------------------------------------


def worst_gain(gradients, d):
    return (gradients @ d).min()


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_cagrad_equals_scipy_over_the_simplex_on_explicit_vectors(seed, c):
    gradients = conflicting(seed=seed)
    mean = gradients.mean(0)
    radius = c * np.linalg.norm(mean)

    def dual(w):
        return w @ gradients @ mean + radius * np.linalg.norm(w @ gradients)

    starts = [np.full(4, 0.25), *(np.full(4, 0.05) + 0.8 * np.eye(4))]
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = min(
        (minimize(dual, w, bounds=[(0, 1)] * 4, constraints=simplex, options={"ftol": 1e-14}) for w in starts),
        key=lambda result: result.fun,
    )
    w = best.x @ gradients
    expected = mean + radius * w / np.linalg.norm(w)
    ours = conflict_averse(gradients @ gradients.T, c) @ gradients
    assert np.linalg.norm(ours - mean) <= radius * (1 + 1e-9)
    # strong duality: the gain of the task worst served is the minimum over the simplex
    assert worst_gain(gradients, ours) == pytest.approx(best.fun, rel=1e-5, abs=1e-5)
    assert worst_gain(gradients, ours) >= worst_gain(gradients, expected) - 1e-5
    assert np.allclose(ours, expected, atol=2e-3 * np.linalg.norm(expected))


def test_cagrad_of_aligned_gradients_of_one_length_is_longer_by_c():
    assert conflict_averse(np.ones((3, 3)), 0.5).sum() == pytest.approx(1.5)


@pytest.mark.parametrize(("rescale", "divisor"), [("none", 1.0), ("square", 1.25), ("linear", 1.5)])
def test_cagrad_rescales(rescale, divisor):
    gradients = conflicting()
    plain = conflict_averse(gradients @ gradients.T, 0.5)
    assert coefficients(CAGradConfig(rescale=rescale), gradients) == pytest.approx(plain / divisor)


def test_cagrad_without_a_radius_is_the_mean():
    assert conflict_averse(np.diag([1.0, 2.0]), 0.0).tolist() == [0.5, 0.5]


def test_cagrad_of_gradients_that_cancel_is_finite():
    gradients = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    assert np.isfinite(conflict_averse(gradients @ gradients.T, 0.5)).all()


@pytest.mark.parametrize("seed", [8, 63, 67, 68, 86, 117])
def test_cagrad_stays_in_its_ball_when_the_gram_matrix_has_float32_precision(seed):
    """Three gradients on one line, lengths over eight orders of magnitude: these seeds fail without the ridge."""
    random = np.random.default_rng(seed)
    gradients = random.normal(size=(3, 2))
    gradients[2], gradients[1] = gradients[0], -gradients[0] * random.uniform(0.5, 2)
    gradients = (gradients * 10 ** random.uniform(-4, 4, size=(3, 1))).astype(np.float32)
    d = conflict_averse((gradients @ gradients.T).astype(np.float64), 0.5) @ gradients.astype(np.float64)
    mean = gradients.astype(np.float64).mean(0)
    assert np.linalg.norm(d - mean) <= 0.5 * np.linalg.norm(mean) * 1.01


def test_cagrad_leaves_a_gradient_of_zero_its_share_of_the_mean():
    gradients = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    c = conflict_averse(gradients @ gradients.T, 0.5)
    assert c[2] == pytest.approx(1 / 3) and c[0] == pytest.approx(c[1])
    assert np.linalg.norm(c @ gradients) == pytest.approx(1.5 * np.sqrt(2) / 3)


# -- Nash-MTL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_nash_solves_the_bargaining_equation(seed):
    gradients = conflicting(tasks=5, width=40, seed=seed) * 10.0 ** (seed - 4)
    gram = gradients @ gradients.T
    alpha = bargain(gram)
    assert (alpha > 0).all()
    assert np.allclose(gram @ alpha * alpha, 1.0, atol=1e-6)
    assert np.linalg.norm(alpha @ gradients) == pytest.approx(np.sqrt(5))


def test_nash_maximises_the_product_of_gains():
    """The bargaining solution itself: sum_i log(g_i . d) over all steps d of the same norm."""
    gradients = conflicting(tasks=3, width=4, seed=2)
    d = bargain(gradients @ gradients.T) @ gradients
    random = np.random.default_rng(0)
    gain = np.log(gradients @ d).sum()
    for _ in range(200):
        other = d + 0.1 * random.normal(size=4)
        gains = gradients @ (other * np.linalg.norm(d) / np.linalg.norm(other))
        assert (gains <= 0).any() or np.log(gains).sum() <= gain + 1e-9


def test_nash_of_orthogonal_gradients_is_one_over_their_norms():
    assert bargain(np.diag([1.0, 4.0, 100.0])).tolist() == pytest.approx([1.0, 0.5, 0.1])
    paper = coefficients(NashConfig(scaling="paper"), np.diag([1.0, 2.0, 10.0]))
    assert paper.tolist() == pytest.approx([1.0, 0.5, 0.1])
    assert coefficients(NashConfig(), np.diag([1.0, 2.0, 10.0])) == pytest.approx(paper / 1.6)


def test_nash_of_gradients_that_cancel_makes_nearly_no_step():
    gradients = np.array([[1.0, 0.0], [-2.0, 0.0]])
    c = coefficients(NashConfig(), gradients)
    assert c.tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-4)
    assert np.linalg.norm(c @ gradients) < 1e-3


def test_nash_gives_a_gradient_of_zero_nothing():
    assert coefficients(NashConfig(), np.diag([1.0, 0.0, 1.0])).tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert coefficients(NashConfig(), np.zeros((3, 3))).tolist() == [0.0, 0.0, 0.0]


# -- GradNorm --------------------------------------------------------------------------------------------------------


def test_gradnorm_equals_autograd_on_the_published_loss():
    """Three regressions on one shared layer W: |w_i dL_i/dW| by double backward, the target held constant."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, targets = random(16, 5), random(3, 16) * torch.tensor([[1.0], [3.0], [0.3]])
    shared, heads = random(5, 4).requires_grad_(), random(3, 4)
    config = GradNormConfig(alpha=0.7)
    gradnorm = GradNorm(config, 3, seed=0)
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=config.learning_rate)
    first = None
    for step in range(40):
        losses = torch.stack([(x @ shared @ heads[i] - targets[i]).square().mean() for i in range(3)])
        rows = [torch.autograd.grad(loss, shared, retain_graph=True)[0].flatten() for loss in losses]
        gradients = torch.stack(rows)
        assert torch.allclose(
            gradnorm.coefficients(gradients @ gradients.T, losses, torch.ones(3, dtype=torch.bool)), w.detach() / 3
        )

        first = losses.detach() if first is None else first
        norms = torch.stack(
            [torch.autograd.grad(w[i] * losses[i], shared, create_graph=True)[0].norm() for i in range(3)]
        )
        ratio = (losses / first).detach()
        target = norms.mean().detach() * (ratio / ratio.mean()) ** 0.7
        (w.grad,) = torch.autograd.grad((norms - target).abs().sum(), w)
        optimizer.step()
        with torch.no_grad():
            w *= 3 / w.sum()
            shared -= 0.01 * (w @ gradients).view_as(shared)
        assert torch.allclose(gradnorm.weight_T, w.detach(), atol=1e-10), step


@pytest.mark.parametrize(("alpha", "raised"), [(0.5, 0), (2.0, 1)])
def test_gradnorm_trades_norms_against_pace_by_alpha(alpha, raised):
    """Norms 1 and 2, mean 1.5; losses now 2/3 and 4/3 of their mean pace.

    Targets 1.5 r^alpha: (1.22, 1.73) at alpha 0.5, so that task 0 must gain; (0.67, 2.67) at 2, so that task 1 must.
    """
    gradnorm, both = GradNorm(GradNormConfig(alpha=alpha), 2, seed=0), torch.tensor([True, True])
    gradnorm.start_T = torch.tensor([1.0, 1.0], dtype=torch.float64)
    gradnorm.coefficients(torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([0.5, 1.0]), both)
    assert gradnorm.weight_T[raised] > 1 > gradnorm.weight_T[1 - raised]


def test_gradnorm_raises_the_weight_of_a_small_gradient():
    gradnorm = GradNorm(GradNormConfig(), 2, seed=0)
    both = torch.tensor([True, True])
    for _ in range(20):
        gradnorm.coefficients(torch.diag(torch.tensor([100.0, 1.0])), torch.ones(2), both)
    assert gradnorm.weight_T[1] > 1.2 and gradnorm.weight_T.sum().item() == pytest.approx(2)


def test_gradnorm_keeps_weights_above_zero():
    gradnorm = GradNorm(GradNormConfig(learning_rate=5.0), 2, seed=0)
    for _ in range(5):
        c = gradnorm.coefficients(torch.diag(torch.tensor([100.0, 1.0])), torch.ones(2), torch.tensor([True, True]))
        assert (c > 0).all()


def test_a_weight_on_a_loss_does_not_move_the_bargain():
    gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weighed = torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64)[:, None] * gradients
    present = torch.ones(3, dtype=torch.bool)
    steps = [
        NashMTL(NashConfig(scaling="paper"), 3, seed=0).coefficients(g @ g.T, torch.ones(3), present) @ g
        for g in (gradients, weighed)
    ]
    assert torch.allclose(*steps)
