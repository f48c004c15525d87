"""GradNorm (Chen et al. 2018, arXiv 1711.02257): gradient norms in step, larger for tasks that train slowly.

Shape legend: ``T`` tasks. Norms are over all shared parameters, where the paper takes the last shared layer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from multitune.objectives.balancing.adam import adam, no_moments
from multitune.objectives.balancing.balancer import Balancer, on_cpu, share, unknown
from multitune.objectives.balancing.config import GradNormConfig

LEAST_WEIGHT = 1e-3
"""The paper leaves weights free; one that Adam drives below 0 would have its task unlearnt."""


class GradNorm(Balancer):
    """Coefficients w_i / sum_j w_j; w then steps down sum_i |w_i |g_i| - mean_j(w_j |g_j|) r_i^alpha|.

    r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)) with L_i(0) the first loss of the task; the target is held
    constant. After Adam's step the weights are rescaled to the sum they had. Means are over the tasks present.
    """

    uses_gradients: ClassVar[bool] = True
    STATE: ClassVar[tuple[str, ...]] = ("weight_T", "moments_3T", "start_T")
    config: GradNormConfig

    def __init__(self, config: GradNormConfig, tasks: int, seed: int) -> None:
        super().__init__(config, tasks, seed)
        self.weight_T = torch.ones(tasks, dtype=torch.float64)
        self.moments_3T = no_moments(tasks)
        self.start_T = unknown(tasks)

    def coefficients(self, gram_TT: Tensor, loss_T: Tensor, present_T: Tensor) -> Tensor:
        loss_T, present_T = on_cpu(loss_T), present_T.cpu()
        self.start_T = torch.where(present_T & self.start_T.isnan(), loss_T, self.start_T)
        coefficient_T = share(self.weight_T, present_T)
        if present_T.any():
            norm_T = on_cpu(gram_TT).diagonal().clamp_min(0.0).sqrt()
            self._step(norm_T, loss_T / torch.where(self.start_T > 0, self.start_T, 1.0), present_T)
        return coefficient_T

    def _step(self, norm_T: Tensor, ratio_T: Tensor, present_T: Tensor) -> None:
        target_T = (self.weight_T * norm_T)[present_T].mean() * _pace(ratio_T, present_T) ** self.config.alpha
        gradient_T = torch.sign(self.weight_T * norm_T - target_T) * norm_T
        stepped_T, self.moments_3T = adam(
            self.weight_T, gradient_T, self.moments_3T, present_T, self.config.learning_rate
        )
        stepped_T = stepped_T.clamp_min(LEAST_WEIGHT)
        rescale = self.weight_T[present_T].sum() / stepped_T[present_T].sum()
        self.weight_T = torch.where(present_T, stepped_T * rescale, self.weight_T)


def _pace(ratio_T: Tensor, present_T: Tensor) -> Tensor:
    """Return the loss ratios over their mean; 1 where all losses are 0."""
    mean = ratio_T[present_T].mean()
    return ratio_T / mean if mean > 0 else torch.ones_like(ratio_T)
