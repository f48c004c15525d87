"""GEM (Lopez-Paz and Ranzato 2017, arXiv 1706.08840): a step on new tasks that, to first order, hurts no earlier one.

Shape legend: ``T`` tasks, ``E`` earlier ones; g the mean gradient of the new tasks, G the gradients of the earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitune.objectives.balancing.balancer import Balancer, on_cpu
from multitune.objectives.balancing.config import GemConfig


class GEM(Balancer):
    """Coefficients of the gradient nearest to g whose product with every earlier task's gradient is not negative.

    min over d of |d - g|^2 / 2 with G d >= 0; by its dual (equation 11), d = g + v G, where v >= margin minimises
    |g + v G|^2 / 2. Where nothing is violated d is g. Only products of gradients of parameters that train enter. Each
    step's memory of an earlier task is its rows in that step: the mixture says how many (``replay``), and a source with
    ``rows`` keeps the memory small.

    Args:
        config: with the names of the earlier tasks.
        names: of all tasks, in the order of their ids.
        seed: of nothing.
    """

    uses_gradients: ClassVar[bool] = True
    config: GemConfig

    def __init__(self, config: GemConfig, names: Sequence[str], seed: int) -> None:
        super().__init__(config, len(names), seed)
        self.earlier_T = torch.tensor([name in config.earlier for name in names])

    def coefficients(self, gram_TT: Tensor, loss_T: Tensor, present_T: Tensor) -> Tensor:
        present_T, gram_TT = present_T.cpu(), on_cpu(gram_TT)
        new = (present_T & ~self.earlier_T).nonzero().flatten()
        earlier = (present_T & self.earlier_T).nonzero().flatten()
        coefficient_T = torch.zeros(self.tasks, dtype=torch.float64)
        coefficient_T[new] = 1 / max(len(new), 1)
        product_E = (gram_TT[earlier] @ torch.where(coefficient_T > 0, coefficient_T, 0.0)).numpy()
        if len(new) and (product_E < 0).any():
            gram_EE = gram_TT[earlier][:, earlier].numpy()
            coefficient_T[earlier] = torch.from_numpy(dual(gram_EE, product_E, self.config.margin))
        return coefficient_T


def dual(gram_EE: np.ndarray, product_E: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Return the v >= margin that minimises v G G^T v / 2 + v G g, float64 [E].

    Lawson and Hanson's active-set method on the Gram matrix, in gradients of length 1: exact after at most a few
    solutions of systems no larger than E. A gradient of 0 forbids nothing; its v is the margin.

    Args:
        gram_EE: G G^T.
        product_E: G g.
        margin: pushes the step further from what hurts (the authors' memory strength).
    """
    length_E = np.sqrt(np.diag(gram_EE))
    moving = np.flatnonzero(length_E > 1e-12 * length_E.max(initial=0.0))
    v_E = np.full(len(length_E), margin)
    if not len(moving):
        return v_E
    length = length_E[moving]
    cosine = gram_EE[np.ix_(moving, moving)] / np.outer(length, length)
    linear = (product_E + margin * gram_EE.sum(1))[moving] / length
    v_E[moving] += _least_nonnegative(cosine, linear) / length
    return v_E


def _least_nonnegative(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Minimise x . matrix x / 2 + linear . x over x >= 0; ``matrix`` has ones on its diagonal."""
    x = np.zeros(len(linear))
    free = np.zeros(len(linear), dtype=bool)
    tolerance = 1e-10 * np.abs(linear).max()
    for _ in range(3 * len(linear) + 10):
        descent = np.where(free, -np.inf, -(matrix @ x + linear))
        if descent.max() <= tolerance:
            break
        free[descent.argmax()] = True
        while True:
            target = np.zeros_like(x)
            target[free] = np.linalg.lstsq(matrix[np.ix_(free, free)], -linear[free], rcond=None)[0]
            if (target[free] > 0).all():
                x = target
                break
            leaving = free & (target <= 0)
            reach = np.min(x[leaving] / (x[leaving] - target[leaving]))
            x = x + reach * (target - x)
            free &= x > 1e-14
            x[~free] = 0.0
    return x
