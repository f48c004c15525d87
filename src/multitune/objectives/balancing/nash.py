"""Nash-MTL (Navon et al. 2022, arXiv 2202.01017): the step on which the tasks would agree in bargaining.

Shape legend: ``T`` tasks, M = G G^T the Gram matrix of the task gradients.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitune.objectives.balancing.balancer import Balancer, on_cpu, share
from multitune.objectives.balancing.config import NashConfig

LEAST_EIGENVALUE = 1e-10
"""Of the matrix of cosines. Below it the gradients cancel to the precision of the Gram matrix: there is no bargain."""


class NashMTL(Balancer):
    """Coefficients alpha > 0 with M alpha = 1 / alpha, by default divided by their sum.

    As they stand, the step they make has the norm sqrt(T) whatever the gradients (``scaling: paper``); divided by their
    sum they equal uniform weights for gradients of equal norms and angles, and the step vanishes with the gradients.
    A task whose gradient is 0 has nothing to bargain for: its coefficient is 0. Where gradients cancel (a Pareto
    stationary point, no solution) the coefficients are those of the cancellation, and the step is nearly 0.
    """

    uses_gradients: ClassVar[bool] = True
    config: NashConfig

    def coefficients(self, gram_TT: Tensor, loss_T: Tensor, present_T: Tensor) -> Tensor:
        gram_TT = on_cpu(gram_TT)
        square_T = torch.where(present_T.cpu(), gram_TT.diagonal(), 0.0)
        bargaining_T = square_T > 1e-14 * square_T.max()
        bargaining = bargaining_T.nonzero().flatten()
        coefficient_T = torch.zeros(self.tasks, dtype=torch.float64)
        if len(bargaining):
            coefficient_T[bargaining] = torch.from_numpy(bargain(gram_TT[bargaining][:, bargaining].numpy()))
        return coefficient_T if self.config.scaling == "paper" else share(coefficient_T, bargaining_T)


def bargain(gram: np.ndarray) -> np.ndarray:
    """Solve M alpha = 1 / alpha for alpha > 0, float64 [T].

    alpha minimises alpha . M alpha / 2 - sum log alpha, which is strictly convex and self-concordant: damped Newton
    steps converge from anywhere, where the paper linearises and iterates. In beta_i = alpha_i |g_i| only the angles
    between the gradients matter, and the scales of the tasks do no harm to precision.

    Args:
        gram: products of the task gradients, [T, T], with a positive diagonal.
    """
    norm = np.sqrt(np.diag(gram))
    eigenvalues, vectors = np.linalg.eigh(gram / np.outer(norm, norm))
    cosine = (vectors * eigenvalues.clip(LEAST_EIGENVALUE)) @ vectors.T
    beta = 1 / np.sqrt(cosine.clip(0).sum(1))
    for _ in range(500):
        gradient = cosine @ beta - 1 / beta
        step = -np.linalg.solve(cosine + np.diag(1 / beta**2), gradient)
        decrement = np.sqrt(max(-gradient @ step, 0.0))
        beta = beta + step / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-12:
            break
    return beta / norm
