"""CAGrad (Liu et al. 2021, arXiv 2110.14048): near the mean gradient, the direction best for the task worst served.

Shape legend: ``T`` tasks. g0 is the mean gradient, g_w = sum_i w_i g_i, M the Gram matrix of the task gradients.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from multitune.objectives.balancing.balancer import Balancer, on_cpu
from multitune.objectives.balancing.config import CAGradConfig

RIDGE = 1e-6
"""|g_w|^2 counts sum_i w_i^2 |g_i|^2 this much more: what a float32 Gram matrix leaves unknown where gradients cancel.

There the norm has no derivative either, and without the ridge the result would leave the ball around g0."""


class CAGrad(Balancer):
    """Coefficients of g0 + c |g0| g_w / |g_w|, where w on the simplex minimises g_w . g0 + c |g0| |g_w|.

    That is the d that maximises min_i g_i . d among all d with |d - g0| <= c |g0|. The norm of the result is between
    1 - c and 1 + c times that of uniform weights, divided as ``rescale`` says.
    """

    uses_gradients: ClassVar[bool] = True
    config: CAGradConfig

    def coefficients(self, gram_TT: Tensor, loss_T: Tensor, present_T: Tensor) -> Tensor:
        present = present_T.cpu().nonzero().flatten()
        gram = on_cpu(gram_TT)[present][:, present].numpy()
        coefficient_T = torch.zeros(self.tasks, dtype=torch.float64)
        if len(present):
            c = self.config.c
            divisor = {"none": 1.0, "square": 1 + c**2, "linear": 1 + c}[self.config.rescale]
            coefficient_T[present] = torch.from_numpy(conflict_averse(gram, c) / divisor)
        return coefficient_T


def conflict_averse(gram: np.ndarray, c: float) -> np.ndarray:
    """Coefficients 1/T + c |g0| w / |g_w| of the task gradients, float64 [T].

    Args:
        gram: products of the task gradients, [T, T].
        c: radius around g0 relative to |g0|, in [0, 1).
    """
    tasks = len(gram)
    mean = np.full(tasks, 1 / tasks)
    scale = np.trace(gram) / tasks
    radius = c * math.sqrt(max(mean @ gram @ mean, 0.0) / scale) if scale > 0 else 0.0
    if radius == 0:
        return mean
    gram = gram / scale
    moving = np.diag(gram) > 1e-14 * np.diag(gram).max()  # a gradient of 0 would be the one worst served, whatever d
    linear = gram @ mean
    gram = gram + RIDGE * np.diag(np.diag(gram))
    w = np.zeros(tasks)
    w[moving] = least_on_simplex(gram[np.ix_(moving, moving)], linear[moving], radius)
    return mean + radius * w / norm(w, gram)


def least_on_simplex(gram: np.ndarray, linear: np.ndarray, radius: float) -> np.ndarray:
    """Minimise w . linear + radius sqrt(w . gram w) over the simplex, by Newton steps on a log barrier.

    The barrier's weight falls to 1e-12, so the minimum is met to about T x 1e-12 for gradients of mean square norm 1.
    """
    tasks = len(gram)
    w = np.full(tasks, 1 / tasks)
    system = np.ones((tasks + 1, tasks + 1))
    system[-1, -1] = 0.0

    def value(w: np.ndarray, barrier: float) -> float:
        return w @ linear + radius * norm(w, gram) - barrier * np.log(w).sum()

    for barrier in 10.0 ** -np.arange(0, 13):
        for _ in range(50):
            length_w = norm(w, gram)
            along = gram @ w / length_w
            gradient = linear + radius * along - barrier / w
            curvature = radius * (gram - np.outer(along, along)) / length_w
            system[:-1, :-1] = curvature + np.diag(barrier / w**2)
            step = np.linalg.solve(system, np.append(-gradient, 0.0))[:-1]  # the last row keeps the sum at 1
            slope = gradient @ step
            if -slope < 1e-6 * barrier:
                break
            shrinking = step < 0
            length = min(1.0, 0.99 * float(np.min(-w[shrinking] / step[shrinking], initial=np.inf)))
            now = value(w, barrier)
            while length > 1e-12 and value(w + length * step, barrier) > now + 1e-4 * length * slope:
                length /= 2
            w = w + length * step
    return w / w.sum()


def norm(w: np.ndarray, gram: np.ndarray) -> float:
    """|g_w| from the Gram matrix; positive, also where rounding makes the square negative."""
    return math.sqrt(max(w @ gram @ w, np.finfo(np.float64).tiny))
