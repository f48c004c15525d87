"""A cache of labelled rows as a head beside a model's own: Tip-Adapter (arXiv 2207.09519), learned with coefficients.

logits = model's logits + a exp(-b (1 - f F^T)) Y, where f are features of length one, F those of the cached rows and Y
their labels. aTLAS learns a, b and F together with the coefficients.

Shape legend: ``B`` rows, ``R`` cached rows, ``W`` width of a feature, ``L`` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from multitune.errors import MultituneError


class CacheHead(nn.Module):
    """The cache; its parameters are companions of ``learn_coefficients``.

    Args:
        features_RW: of the labelled rows under the pretrained model; they are scaled to length one.
        labels_R: 0 to L - 1.
        classes: L.
        weight: a at the start, 2 as in aTLAS.
        sharpness: b at the start, 1 as in aTLAS.

    Raises:
        MultituneError: no rows, or as many labels as there are not rows.
    """

    def __init__(
        self, features_RW: Tensor, labels_R: Tensor, classes: int, *, weight: float = 2.0, sharpness: float = 1.0
    ) -> None:
        super().__init__()
        if not len(features_RW) or len(features_RW) != len(labels_R):
            raise MultituneError(
                f"{len(features_RW)} features and {len(labels_R)} labels make no cache.",
                "cache head",
                "Give a feature and a label of every row.",
            )
        self.keys = nn.Parameter(functional.normalize(features_RW.detach().clone(), dim=-1))
        self.weight = nn.Parameter(self.keys.new_tensor(weight))
        self.sharpness = nn.Parameter(self.keys.new_tensor(sharpness))
        self.values_RL: Tensor
        self.register_buffer("values_RL", functional.one_hot(labels_R, classes).to(self.keys))

    def forward(self, logits_BL: Tensor, features_BW: Tensor) -> Tensor:
        """Return the model's logits plus the cache's [B, L]."""
        affinity_BR = functional.normalize(features_BW, dim=-1) @ functional.normalize(self.keys, dim=-1).T
        return logits_BL + self.weight * torch.exp(-self.sharpness * (1 - affinity_BR)) @ self.values_RL

    def companions(self, rate: float = 0.1, key_rate: float = 1e-3) -> list[tuple[list[nn.Parameter], float]]:
        """Return what is learned along with the coefficients, at aTLAS's rates."""
        return [([self.weight, self.sharpness], rate), ([self.keys], key_rate)]
