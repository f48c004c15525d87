"""Adam on one number per task, where a task that is absent keeps its number, moments and step count.

torch.optim.Adam moves every entry of a tensor at every step: moments of an absent task would decay, and push it on.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def no_moments(tasks: int) -> Tensor:
    """Return the state before the first step, [3, T]: first moment, second moment, steps taken."""
    return torch.zeros(3, tasks, dtype=torch.float64)


def adam(
    value_T: Tensor,
    gradient_T: Tensor,
    moments_3T: Tensor,
    active_T: Tensor,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Take one Adam step (L2 weight decay, as torch.optim.Adam) where ``active_T``; return values and moments."""
    first_T, second_T, count_T = moments_3T
    gradient_T = gradient_T + weight_decay * value_T
    first_T = BETA_1 * first_T + (1 - BETA_1) * gradient_T
    second_T = BETA_2 * second_T + (1 - BETA_2) * gradient_T.square()
    count_T = count_T + 1
    deviation_T = (second_T / (1 - BETA_2**count_T)).sqrt() + EPSILON
    moved_T = value_T - learning_rate * first_T / (1 - BETA_1**count_T) / deviation_T
    moved_3T = torch.stack((first_T, second_T, count_T))
    return torch.where(active_T, moved_T, value_T), torch.where(active_T, moved_3T, moments_3T)
