"""The cache of labelled rows by hand, and learned along with coefficients."""

from __future__ import annotations

import math

import pytest
import torch

from multitune.errors import MultituneError
from multitune.weights.learned.cache_head import CacheHead
from multitune.weights.learned.config import SETTINGS, LearningConfig
from multitune.weights.learned.learning import LearningTask, learn_coefficients
from multitune.weights.learned.objectives import cross_entropy


def test_a_row_asks_the_cache_by_hand():
    head = CacheHead(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]), classes=3)
    logits = head(torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[3.0, 0.0]]))
    assert logits.tolist()[0] == pytest.approx([2 * math.exp(-1), 1 + 2, 5])  # alike: 2 exp(0); across: 2 exp(-1)
    silent = CacheHead(torch.ones(1, 2), torch.tensor([0]), classes=3, weight=0.0)
    assert silent(torch.ones(1, 3), torch.ones(1, 2)).equal(torch.ones(1, 3))


@pytest.mark.parametrize("rows", [0, 2])
def test_labels_that_do_not_fit_are_refused(rows):
    with pytest.raises(MultituneError, match="make no cache"):
        CacheHead(torch.ones(rows, 2), torch.zeros(3 * (rows > 0), dtype=torch.long), classes=2)


def with_head(bench):
    """The model's outputs are features and logits at once."""
    with torch.no_grad():
        head = CacheHead(bench.model(bench.inputs), bench.labels, classes=3)

    def loss(forward, batch):
        outputs = forward(bench.inputs)
        return cross_entropy(head(outputs, outputs), bench.labels)

    return head, LearningTask("rows", lambda epoch, forward: [0, 0, 0], loss)


@pytest.mark.parametrize("radius", [0.0, 0.05])
def test_cache_and_coefficients_are_learned_together_alike_by_both_routes(bench, radius):
    found = []
    for route in ("streamed", "autograd"):
        head, task = with_head(bench)
        config = SETTINGS["few-shot"].model_copy(update={"epochs": 4, "route": route, "sharpness_radius": radius})
        learned = learn_coefficients(bench.model, bench.vectors, [task], config, companions=head.companions())
        assert learned.losses[-1] < learned.losses[0]
        assert float(head.weight.detach()) != 2.0 and head.keys.grad is None
        found.append([learned.lam_NC, *(parameter.detach() for parameter in head.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_companions_go_back_to_the_kept_epoch(bench):
    head, task = with_head(bench)
    before = [parameter.detach().clone() for parameter in head.parameters()]
    scores = iter([1.0, 0.5, 0.2])  # the start is best
    config = LearningConfig(learning_rate=0.1, epochs=2)
    learned = learn_coefficients(
        bench.model, bench.vectors, [task], config, evaluate=lambda f: next(scores), companions=head.companions()
    )
    assert learned.epoch == 0
    assert all(parameter.equal(value) for parameter, value in zip(head.parameters(), before, strict=True))
