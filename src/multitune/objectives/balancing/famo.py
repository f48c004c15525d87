"""FAMO: all log losses decrease at the same rate (Liu et al. 2023, arXiv 2306.03792; on validation losses: MFTCoder).

Shape legend: ``T`` tasks. Letters as in the paper: xi logits, z = softmax(xi), D = loss - minimum + 1e-8.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from multitune.objectives.balancing.adam import adam, no_moments
from multitune.objectives.balancing.balancer import Balancer, on_cpu, share, unknown
from multitune.objectives.balancing.config import FamoConfig


class Famo(Balancer):
    """Weights (z_i / D_i) / sum_j z_j / D_j: the gradient of sum_i z_i log D_i, scaled so that they sum to 1.

    Observing ``validation`` losses, ``observe(0, ...)`` before training gives the first step something to compare with;
    without it the second observation is the first to count. Observing ``training`` losses, the comparison is with the
    losses that ``weights`` was given for the same batch.
    """

    uses_step_losses: ClassVar[bool] = True
    STATE: ClassVar[tuple[str, ...]] = ("xi_T", "moments_3T", "previous_T")

    config: FamoConfig

    def __init__(self, config: FamoConfig, tasks: int, seed: int) -> None:
        super().__init__(config, tasks, seed)
        self.observes = config.losses
        self.xi_T = torch.zeros(tasks, dtype=torch.float64)
        self.moments_3T = no_moments(tasks)
        self.previous_T = unknown(tasks)

    def weights(self, loss_T: Tensor | None, present_T: Tensor) -> Tensor:
        assert loss_T is not None, "FAMO weighs by the step's own losses"
        loss_T, present_T = on_cpu(loss_T), present_T.cpu()
        if self.observes == "training":
            self.previous_T = torch.where(present_T, loss_T, self.previous_T)
        return share(_softmax(self.xi_T, present_T) / self._distance(loss_T), present_T)

    def due(self, step: int) -> bool:
        if self.observes == "training":
            return step > 0
        return step % self.config.update_interval == 0

    def observe(self, step: int, loss_T: Tensor, present_T: Tensor) -> None:
        loss_T, present_T = on_cpu(loss_T), present_T.cpu()
        compared_T = present_T & ~self.previous_T.isnan()
        delta_T = self._distance(self.previous_T).log() - self._distance(loss_T).log()
        delta_T = torch.where(compared_T, delta_T, 0.0)
        z_T = _softmax(self.xi_T, compared_T)
        gradient_T = z_T * (delta_T - z_T @ delta_T)  # J_softmax(xi)^T delta
        self.xi_T, self.moments_3T = adam(
            self.xi_T, gradient_T, self.moments_3T, compared_T, self.config.learning_rate, self.config.weight_decay
        )
        self.previous_T = torch.where(present_T, loss_T, self.previous_T)

    def _distance(self, loss_T: Tensor) -> Tensor:
        return (loss_T - self.config.minimum_loss).clamp_min(0.0) + 1e-8


def _softmax(xi_T: Tensor, of_T: Tensor) -> Tensor:
    """Return the softmax over some of the tasks, 0 for the others."""
    return share((xi_T - xi_T.max()).exp(), of_T)
