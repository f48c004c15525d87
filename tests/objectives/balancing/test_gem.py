"""GEM against a general solver on explicit vectors, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from multitune.objectives.balancing.balancers import make_balancer
from multitune.objectives.balancing.config import GemConfig
from multitune.objectives.balancing.gem import dual

NAMES = ("new", "old", "older", "oldest")


def coefficients(gradients, earlier=NAMES[1:], margin=0.0, present=None):
    names = NAMES[: len(gradients)]
    present = torch.ones(len(names), dtype=torch.bool) if present is None else torch.tensor(present)
    balancer = make_balancer(GemConfig(earlier=earlier, margin=margin), names, seed=0)
    return balancer.coefficients(torch.from_numpy(gradients @ gradients.T), torch.ones(len(names)), present).numpy()


def test_a_gradient_that_hurts_nothing_stays_as_it_is():
    gradients = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    assert coefficients(gradients).tolist() == [1.0, 0.0, 0.0]


def test_one_memory_is_a_projection_onto_its_half_space():
    """g = (1, 0), memory (-1, 1): g + v (-1, 1) is orthogonal to it at v = 1/2."""
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    c = coefficients(gradients, ("old",))
    assert c.tolist() == pytest.approx([1.0, 0.5])
    assert (c @ gradients).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_gradient_inside_all_half_spaces(seed):
    random = np.random.default_rng(seed)
    gradients = random.normal(size=(4, 6)) * np.array([1.0, 0.1, 5.0, 30.0])[:, None]
    gradients[0] -= 0.5 * gradients[2] / 5
    ours = coefficients(gradients) @ gradients
    memories = gradients[1:] / np.linalg.norm(gradients[1:], axis=1)[:, None]
    assert (memories @ ours >= -1e-8).all()
    found = minimize(
        lambda d: ((d - gradients[0]) ** 2).sum() / 2,
        gradients[0],
        jac=lambda d: d - gradients[0],
        constraints={"type": "ineq", "fun": lambda d: memories @ d, "jac": lambda d: memories},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert np.allclose(ours, found.x, atol=1e-5)


def test_optimality_with_memories_that_are_alike_or_opposite():
    """Products with the memories, and the factors of those that bind: one of each pair is zero."""
    memories = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    g = np.array([-2.0, 1.0, 0.5])
    v = dual(memories @ memories.T, memories @ g)
    d = g + v @ memories
    assert (v >= 0).all()
    assert (memories @ d >= -1e-12).all()
    assert np.abs(v * (memories @ d)).max() < 1e-12
    assert d.tolist() == pytest.approx([0.0, 1.0, 0.5])


def test_a_margin_is_the_least_factor_once_something_is_hurt():
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]])
    c = coefficients(gradients, margin=0.7)
    assert (c[1:] >= 0.7).all()
    harmless = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    assert coefficients(harmless, margin=0.7).tolist() == [1.0, 0.0, 0.0]


def test_several_new_tasks_count_alike_and_absent_ones_do_not_count():
    gradients = np.array([[2.0, 0.0], [-1.0, 1.0], [0.0, 2.0], [9.0, 9.0]])
    c = coefficients(gradients, ("old",), present=[True, True, True, False])
    assert c[[0, 2]].tolist() == [0.5, 0.5]
    assert c[3] == 0
    assert coefficients(gradients, present=[False, True, True, True]).tolist() == [0, 0, 0, 0]  # nothing new to learn
