"""Linear layers that compute with a changed copy of their weight: what binary masks and diff pruning share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call

from multitune.models.tuners.places import matrices_of, matrix_widths
from multitune.models.tuners.tuner import PlacedTuner

MATRICES = ("q", "k", "v", "o", "qkv", "kv", "up", "gate", "down", "gate_up")


class ReweightedLayer(nn.Module, BaseTunerLayer):
    """A linear layer whose weight is changed by every active adapter in turn."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.configs: dict[str, Any] = {}
        self.merged_adapters: list[str] = []
        self._before: list[Tensor] = []

    @abstractmethod
    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter to the layer."""

    @abstractmethod
    def changed(self, name: str, weight: Tensor) -> Tensor:
        """Return the weight as an adapter changes it."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output with the changed weight."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else [n for n in self.active_adapters if n in self.configs]
        if not names:
            plain: Tensor = self.base_layer(hidden, *args, **kwargs)
            return plain
        weight: Any = self.get_base_layer().weight
        for name in names:
            weight = self.changed(name, weight)
        output: Tensor = functional_call(self.base_layer, {"weight": weight}, (hidden, *args), kwargs)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Change the weight itself; what it was is kept until it is unmerged."""
        base: Any = self.get_base_layer()
        training = self.training
        self.eval()  # what is drawn in training is no part of the weight
        with torch.no_grad():
            for name in check_adapters_to_merge(self, adapter_names):
                if name in self.configs:
                    self._before.append(base.weight.data.clone())
                    base.weight.data = self.changed(name, base.weight.data)
                    self.merged_adapters.append(name)
        self.train(training)

    def unmerge(self) -> None:
        """Put the weight back as it was, to the bit."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            self.get_base_layer().weight.data = self._before.pop()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)

    def _like_weight(self, value: float) -> nn.Parameter:
        weight: Any = self.get_base_layer().weight
        if not weight.is_floating_point():
            raise ValueError("quantised weights cannot be changed entry by entry")
        return nn.Parameter(torch.full_like(weight, value))


class ReweightingModel(PlacedTuner):
    """A model with changed copies of its linear layers' weights."""

    tuner_layer_cls: type[ReweightedLayer]

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the linear layers inside the layers."""
        if found := list(matrices_of(model, *MATRICES)):
            return found
        raise ValueError("no linear layers were found inside the layers; name target_modules")

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the layer with a change of its weight."""
        matrix_widths(target, path)  # refuses what is no linear layer
        layer = self.tuner_layer_cls(target)
        self.more(layer, path, adapter_name, config)
        return layer

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another change of its weight."""
        layer.update_layer(adapter_name, config)
