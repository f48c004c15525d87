"""Binary masks: which weights stay is learned, and their values are not (arXiv:2004.12406)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn

from multitune.models.tuners.reweighted import ReweightedLayer, ReweightingModel


@dataclass
class BinaryMaskConfig(PeftConfig):
    """Options of `BinaryMaskModel`.

    Attributes:
        threshold: weights whose score is above it stay, tau.
        start: score of every weight at the start; above the threshold, so that all stay. How far above says, with the
            learning rate, how soon the first can go.
        target_modules: linear layers; None: all inside the layers.
    """

    threshold: float = field(default=0.01)
    start: float = field(default=0.02)
    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BINARY_MASK"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if self.start <= self.threshold:
            raise ValueError(f"start must be above the threshold {self.threshold}, not {self.start}")


class BinaryMaskLayer(ReweightedLayer):
    """A linear layer with the weight W * 1[M > tau]; gradients pass the step as if it were the identity."""

    adapter_layer_names = ("mask_scores",)
    mask_scores: nn.ParameterDict

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add a mask to the layer."""
        self.mask_scores[adapter_name] = self._like_weight(config.start)
        self.configs[adapter_name] = config
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def changed(self, name: str, weight: Tensor) -> Tensor:
        """Return the weight with zeros in place of what the mask leaves out."""
        scores = self.mask_scores[name]
        kept = (scores > self.configs[name].threshold).to(weight.dtype)
        if torch.is_grad_enabled() and scores.requires_grad:
            kept = kept + (scores - scores.detach()).to(weight.dtype)  # the value of the step, the slope of the scores
        return weight * kept


class BinaryMaskModel(ReweightingModel):
    """A model of whose weights a learned part is zero."""

    prefix = "binary_mask_"
    tuner_layer_cls = BinaryMaskLayer
