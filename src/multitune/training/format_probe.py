"""How much of a gradient teaches a task's format alone: that of true labels against that of permuted ones.

Labels that stand behind other rows' inputs still have the task's format, and nothing of its content
(arXiv:2211.00635, section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from multitune.tasks.task import Prompted
from multitune.training.alignment import gradient_cosines

Batch = TypeVar("Batch")


def permutation(rows: int, seed: int) -> list[int]:
    """Return a random order of so many rows, the same for the same seed."""
    order: list[int] = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def with_permuted_targets(rows: Sequence[Prompted], order: Sequence[int]) -> list[Prompted]:
    """Return the rows with their inputs and with the targets of others: row i answers what row ``order[i]`` should.

    Args:
        rows: of one task.
        order: a permutation of their places, for example of `permutation`.
    """
    if sorted(order) != list(range(len(rows))):
        raise ValueError(f"no order of {len(rows)} rows: {list(order)}")
    answers = [rows[place] for place in order]
    return [
        replace(row, target=one.target, choices=one.choices, label=one.label, value=one.value)
        for row, one in zip(rows, answers, strict=True)
    ]


def format_alignment(
    loss: Callable[[Batch], Tensor], true: Batch, permuted: Batch, weights: Sequence[nn.Parameter]
) -> float:
    """Return the cosine of the gradients of true and of permuted labels, -1 to 1: near 1, format is what is learned.

    Args:
        loss: a batch -> its mean loss, a scalar.
        true, permuted: the same inputs with their own labels, and with those of other rows.
        weights: in which the gradients are compared.
    """
    return float(gradient_cosines((loss(batch) for batch in (true, permuted)), weights)[0, 1])
