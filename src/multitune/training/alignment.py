"""How far tasks pull shared weights the same way: the cosines between their gradients.

Shape legend: ``T`` tasks, ``P`` parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def gradient_cosines(losses: Iterable[Tensor], shared: Sequence[nn.Parameter]) -> Tensor:
    """Return the cosine of every pair of tasks' gradients, float64 [T, T]; NaN for a task that has none.

    Args:
        losses: one scalar per task, in turn; each may be computed when it is asked for, so that one task's graph is
            held at a time.
        shared: parameters that all tasks train; where a loss does not reach one, its gradient counts as zero.
    """
    gradients = []
    for loss in losses:
        parts = torch.autograd.grad(loss, shared, allow_unused=True)
        flat = [torch.zeros_like(p) if part is None else part for p, part in zip(shared, parts, strict=True)]
        gradients.append(torch.cat([part.flatten().double() for part in flat]))
    gradient_TP = torch.stack(gradients)
    unit_TP = gradient_TP / gradient_TP.norm(dim=1, keepdim=True)
    return unit_TP @ unit_TP.T


def gradient_alignment(losses: Iterable[Tensor], shared: Sequence[nn.Parameter]) -> float:
    """Return the mean cosine over the pairs of different tasks, -1 to 1 (arXiv:2211.03831, section 5.3).

    Args:
        losses, shared: as for ``gradient_cosines``.

    Raises:
        ValueError: fewer than two tasks.
    """
    cosine_TT = gradient_cosines(losses, shared)
    tasks = len(cosine_TT)
    if tasks < 2:
        raise ValueError("gradients of one task have nothing to be aligned with")
    return float((cosine_TT.sum() - cosine_TT.trace()) / (tasks * (tasks - 1)))
