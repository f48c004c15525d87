"""Which task vectors to learn coefficients of, when not all are wanted: masks [N, C] for ``composed``.

Shape legend: ``N`` task vectors, ``C`` coefficients of each, ``W`` width of a feature.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from multitune.errors import MultituneError


def random_selection(vectors: int, columns: int, budget: int, *, seed: int) -> Tensor:
    """Choose ``budget`` whole vectors at random."""
    _checked(budget, vectors)
    drawn = torch.randperm(vectors, generator=torch.Generator().manual_seed(seed))[:budget]
    return whole_vectors(drawn, vectors, columns)


def feature_selection(target_W: Tensor, features_NW: Tensor, columns: int, budget: int) -> Tensor:
    """Choose the whole vectors whose data look most like the target's: by cosine of mean pretrained features.

    Args:
        target_W: mean feature of the target task's rows under the pretrained model.
        features_NW: the same of every vector's task.
    """
    _checked(budget, len(features_NW))
    return _largest_rows(functional.cosine_similarity(features_NW, target_W[None], dim=-1), columns, budget)


def whole_selection(gradient_NC: Tensor, budget: int) -> Tensor:
    """Choose the whole vectors with the largest L1 norm of dL/dlam at the pretrained model (``initial_gradient``)."""
    _checked(budget, len(gradient_NC))
    return _largest_rows(gradient_NC.abs().sum(1), gradient_NC.shape[1], budget)


def blockwise_selection(gradient_NC: Tensor, budget: int) -> Tensor:
    """Choose for every block the vectors with the largest |dL/dlam| at the pretrained model; blocks may differ."""
    _checked(budget, len(gradient_NC))
    order_NC = gradient_NC.abs().argsort(dim=0, descending=True, stable=True)
    chosen_NC = torch.zeros(gradient_NC.shape, dtype=torch.bool)
    return chosen_NC.scatter_(0, order_NC[:budget], True)


def whole_vectors(numbers: Tensor, vectors: int, columns: int) -> Tensor:
    """Return the mask of some vectors, all of their blocks; leaving one out excludes a target's own vector."""
    chosen_NC = torch.zeros(vectors, columns, dtype=torch.bool)
    chosen_NC[numbers] = True
    return chosen_NC


def _largest_rows(value_N: Tensor, columns: int, budget: int) -> Tensor:
    return whole_vectors(value_N.argsort(descending=True, stable=True)[:budget], len(value_N), columns)


def _checked(budget: int, vectors: int) -> None:
    if not 1 <= budget <= vectors:
        raise MultituneError(
            f"{budget} of {vectors} task vectors cannot be chosen.",
            "budget",
            f"Give a number from 1 to {vectors}.",
        )
