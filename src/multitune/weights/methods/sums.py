"""Weighted sums: averages of models, task arithmetic, and the model passed through.

Legend: T models, n entries of a piece. base [n]; deltas [T, n], overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from multitune.weights.methods.layer import Layer


def linear(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return the average of weights (model soups, arXiv 2203.05482).

    W = sum_t w_t theta_t / sum_t w_t; without ``normalize`` the sum alone. ``base`` is zero and ``deltas`` are weights.
    """
    return base + weighted_sum(deltas, factors(parameters))


def task_arithmetic(
    base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer
) -> torch.Tensor:
    """Return base + lambda sum_t w_t tau_t (arXiv 2212.04089); a negative weight unlearns its task."""
    return base + weighted_sum(deltas, factors(parameters)).mul_(parameters["lambda"])


def passthrough(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return the one model's weights times ``scale``: W = s theta; ``base`` is zero."""
    return base + deltas[0].mul_(parameters["scale"][0])


def factors(parameters: Mapping[str, Any]) -> list[float]:
    """Return the models' weights, divided by their sum where ``normalize`` says so (a sum near zero counts as 1)."""
    weights: list[float] = parameters["weight"]
    total = sum(weights)
    if not parameters["normalize"] or abs(total) < 1e-8:
        return weights
    return [weight / total for weight in weights]


def weighted_sum(deltas: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Return sum_t w_t delta_t, [n], in the memory of the first row."""
    total = deltas[0] if weights[0] == 1.0 else deltas[0].mul_(weights[0])
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total
