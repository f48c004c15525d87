"""How much task vectors disturb one another: the disentanglement error of composed models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.weights.learned.learning import Learned
from multitune.weights.learned.routes import routed
from multitune.weights.learned.tasks import Logits, called


def disentanglement_error(
    model: nn.Module, learned: Learned, inputs: Any, first: int, second: int, logits: Logits = called
) -> float:
    """Return the share of the first task's rows whose label changes when the second task's vector is added.

    xi(1, 2) = mean over x in D1 of 1[f(x; base + L1 tau1) != f(x; base + L1 tau1 + L2 tau2)], f the most probable label
    (arXiv 2407.02880); not symmetric.

    Args:
        model: holds the pretrained weights.
        inputs: all rows of the first task at once.
        first, second: numbers of the task vectors, from 0.
        logits: of the first task.
    """
    count = len(learned.lam_NC)
    if first == second or not (0 <= first < count and 0 <= second < count):
        raise MultituneError(
            f"Task vectors {first} and {second} of {count} make no pair.", "disentanglement", "Name two different ones."
        )
    with routed("streamed", model, learned.composition) as route, torch.no_grad():
        labels_B: list[Tensor] = []
        for together in ([first], [first, second]):
            lam_NC = torch.zeros_like(learned.lam_NC)
            lam_NC[together] = learned.lam_NC[together]
            labels_B.append(logits(route.at(lam_NC), inputs).argmax(-1))
    return float(labels_B[0].ne(labels_B[1]).double().mean())


def mean_disentanglement_error(
    model: nn.Module, learned: Learned, inputs: Sequence[Any], logits: Sequence[Logits]
) -> float:
    """Return the mean over all ordered pairs of tasks; inputs and logits per task, in the order of the vectors."""
    pairs = list(itertools.permutations(range(len(inputs)), 2))
    return math.fsum(disentanglement_error(model, learned, inputs[a], a, b, logits[a]) for a, b in pairs) / len(pairs)
