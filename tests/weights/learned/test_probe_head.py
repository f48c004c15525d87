"""The probe beside a frozen head: laws of its steps, and the optimum that they reach."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from multitune.errors import MultituneError
from multitune.weights.learned.probe_head import ProbeHead, probe_head


def rows(count=60, width=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    return features, labels, torch.randn(classes, width, generator=generator, dtype=torch.float64)


def loss(probe, features, labels):
    return float(functional.cross_entropy(probe(features), labels).detach())


def test_as_it_is_made_it_is_the_head_alone():
    features, labels, head = rows()
    assert torch.equal(probe_head(features, labels, head, iterations=0)(features), features @ head.T)
    assert torch.equal(ProbeHead(head)(features), features @ head.T)


def test_no_iteration_goes_up_and_the_last_is_at_the_bottom():
    features, labels, head = rows()
    losses = [loss(probe_head(features, labels, head, iterations=i), features, labels) for i in range(12)]
    assert all(after <= before for before, after in pairwise(losses))
    probe = probe_head(features, labels, head, iterations=4000)
    functional.cross_entropy(probe(features), labels).backward()
    assert float(probe.weight_LW.grad.abs().max()) < 1e-8
    assert float(probe.blend_L.grad.abs().max()) < 1e-8


def test_one_step_by_hand():
    """One row of feature 2 and class 0, head rows 1 and 0: p = e^2 / (e^2 + 1), curvature of w 4 / 2."""
    features, head = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    probe = probe_head(features, torch.tensor([0]), head, iterations=1)
    error = torch.tensor([2.0, 0.0], dtype=torch.float64).softmax(0)[0] - 1
    assert float(probe.weight_LW.detach()[0, 0]) == pytest.approx(float(-error * 2 / 2), abs=1e-12)
    assert float(probe.blend_L.detach()[1]) == 1.0  # the head says nothing of the second class


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda f, y, h: (f[:0], y[:0], h), "do not fit"),
        (lambda f, y, h: (f, y[1:], h), "do not fit"),
        (lambda f, y, h: (f, y, h[:, 1:]), "do not fit"),
        (lambda f, y, h: (f, y + 1, h), "labels 1 to 3 are not among 3 classes"),
        (lambda f, y, h: (f * torch.nan, y, h), "no numbers"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, what):
    with pytest.raises(MultituneError, match=what):
        probe_head(*wrong(*rows()))
