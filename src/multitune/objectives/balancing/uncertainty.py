"""Homoscedastic uncertainty weighting (Kendall, Gal and Cipolla 2018, arXiv 1705.07115).

Shape legend: ``T`` tasks. s = log sigma^2 of every task.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from multitune.objectives.balancing.adam import adam, no_moments
from multitune.objectives.balancing.balancer import Balancer, Observed, on_cpu, share
from multitune.objectives.balancing.config import UncertaintyConfig


class Uncertainty(Balancer):
    """Weights exp(-s_i) / sum_j exp(-s_j), with s minimising sum_i k exp(-s_i) L_i + s_i / 2.

    k is 1 for a softmax likelihood and 1/2 for a Gaussian one. The joint step of the paper moves the model and s at
    once, both from the losses of the step: here the model's gradient uses s from before the step, and ``observe``, told
    the losses that the step itself had, then moves s. The two differ only in scale: the paper's weights k exp(-s_i) are
    divided by their sum, so that the learning rate of the model does not drift with s.
    """

    observes: Observed = "step"
    STATE: ClassVar[tuple[str, ...]] = ("s_T", "moments_3T")
    config: UncertaintyConfig

    def __init__(self, config: UncertaintyConfig, tasks: int, seed: int) -> None:
        super().__init__(config, tasks, seed)
        self.s_T = torch.zeros(tasks, dtype=torch.float64)
        self.moments_3T = no_moments(tasks)

    def weights(self, loss_T: Tensor | None, present_T: Tensor) -> Tensor:
        return share((-self.s_T).exp(), present_T)

    def observe(self, step: int, loss_T: Tensor, present_T: Tensor) -> None:
        k = 1.0 if self.config.likelihood == "classification" else 0.5
        gradient_T = 0.5 - k * (-self.s_T).exp() * on_cpu(loss_T)
        self.s_T, self.moments_3T = adam(
            self.s_T, gradient_T, self.moments_3T, present_T.cpu(), self.config.learning_rate
        )
