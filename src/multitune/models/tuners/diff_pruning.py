"""Diff pruning: a change of every weight behind a gate that is learned to be zero almost everywhere (arXiv:2012.07463).

The gates are hard concrete variables (arXiv:1712.01312), one for each entry. After a part of the run the entries of the
largest changes keep theirs and all others get none, and what is kept trains on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn

from multitune.models.tuners.reweighted import ReweightedLayer, ReweightingModel

LOW, HIGH = -1.5, 1.5
"""Bounds to which a gate is stretched before it is cut to between 0 and 1: those of the paper's runs."""

SETTLED = 1e4
"""Logit of a gate that is open, or closed when negative, for good: no noise reaches the other side, and no gradient."""


@dataclass
class DiffPruningConfig(PeftConfig):
    """Options of `DiffPruningModel`.

    Attributes:
        keep: share of the entries that change in the end; the paper keeps 0.5 %.
        sparsity_weight: of the expected number of open gates in the loss, lambda.
        settle_at: the part of the run after which what changes is settled; 1: never.
        start: logit of every gate at the start.
        target_modules: linear layers; None: all inside the layers.
    """

    keep: float = field(default=0.005)
    sparsity_weight: float = field(default=1.25e-7)
    settle_at: float = field(default=0.5)
    start: float = field(default=5.0)
    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["DIFF_PRUNING"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        for name in ("keep", "settle_at"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share above 0 and at most 1, not {getattr(self, name)}")
        if self.sparsity_weight < 0:
            raise ValueError(f"sparsity_weight is not negative, as {self.sparsity_weight} is")


class DiffPruningLayer(ReweightedLayer):
    """A linear layer with the weight W + z * w; the change w starts at zero.

    z = min(1, max(0, s (HIGH - LOW) + LOW)) with s = sigmoid(log u - log(1 - u) + a) in training, u uniform, and
    s = sigmoid(a) otherwise.
    """

    adapter_layer_names = ("diff_values", "diff_gates")
    diff_values: nn.ParameterDict
    diff_gates: nn.ParameterDict

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add a change to the layer."""
        self.diff_values[adapter_name] = self._like_weight(0.0)
        self.diff_gates[adapter_name] = self._like_weight(config.start)
        self.configs[adapter_name] = config
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def gate(self, name: str) -> Tensor:
        """Return z, as large as the weight."""
        logits = self.diff_gates[name]
        if self.training:
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + torch.log(uniform) - torch.log1p(-uniform)
        return (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0, 1)

    def changed(self, name: str, weight: Tensor) -> Tensor:
        """Return W + z * w."""
        return weight + (self.gate(name) * self.diff_values[name]).to(weight.dtype)

    def open_gates(self, name: str) -> Tensor:
        """Return the expected number of gates above zero."""
        return torch.sigmoid(self.diff_gates[name] - math.log(-LOW / HIGH)).sum()

    @torch.no_grad()
    def sizes(self, name: str) -> Tensor:
        """Return |z w| without noise, [entries]."""
        gate = (torch.sigmoid(self.diff_gates[name]) * (HIGH - LOW) + LOW).clamp(0, 1)
        return (gate * self.diff_values[name]).abs().flatten()

    @torch.no_grad()
    def settle(self, name: str, kept: Tensor) -> None:
        """Open the gates of the kept entries for good, with the change that they had, and close all others."""
        logits, values = self.diff_gates[name], self.diff_values[name]
        kept = kept.view(values.shape)
        gate = (torch.sigmoid(logits) * (HIGH - LOW) + LOW).clamp(0, 1)
        values.copy_(torch.where(kept, gate * values, 0))
        logits.copy_(torch.where(kept, SETTLED, -SETTLED))


class DiffPruningModel(ReweightingModel):
    """A model with a sparse change of its weights."""

    prefix = "diff_pruning_"
    tuner_layer_cls = DiffPruningLayer

    def penalty(self) -> Tensor:
        """Return the expected number of open gates times its weight in the loss, over the active adapters."""
        terms = [
            layer.configs[name].sparsity_weight * layer.open_gates(name)
            for name, layers in self._acting()
            for layer in layers
        ]
        return torch.stack(terms).sum()

    def schedule(self, steps: int) -> None:
        """Say how many optimiser steps the run has."""
        self.__dict__["_steps"] = steps

    def update_and_allocate(self, step: int) -> None:
        """Settle which entries change, where it is time.

        Args:
            step: optimiser steps done.
        """
        for name, layers in self._acting():
            config: Any = self.peft_config[name]
            steps = self.__dict__.get("_steps", 0)
            if steps and config.settle_at < 1 and step == max(1, int(config.settle_at * steps)):
                self.settle(name, layers)

    def settle(self, name: str, layers: list[DiffPruningLayer]) -> None:
        """Let the ``keep`` share of an adapter's entries with the largest changes change for good, and no others."""
        config: Any = self.peft_config[name]
        sizes = torch.cat([layer.sizes(name).float() for layer in layers])
        kept = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
        kept[torch.argsort(sizes, descending=True, stable=True)[: max(1, int(config.keep * len(sizes)))]] = True
        parts = kept.split([layer.diff_values[name].numel() for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            layer.settle(name, part)

    def _acting(self) -> list[tuple[str, list[DiffPruningLayer]]]:
        layers = [module for module in self.model.modules() if isinstance(module, DiffPruningLayer)]
        return [(name, [layer for layer in layers if name in layer.configs]) for name in self.active_adapters]
