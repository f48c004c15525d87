"""Bottleneck adapters: a small network behind, or beside, the sublayers of every layer.

After attention and feed-forward (Houlsby et al., arXiv:1902.00751), after the feed-forward alone (Pfeiffer et al.,
arXiv:2005.00247), or beside the feed-forward (He et al., arXiv:2110.04366); without the lowest layers it is AdapterDrop
(Rücklé et al., arXiv:2010.11918).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers.activations import ACT2FN

from multitune.models.tuners.places import matrices_of, width_of
from multitune.models.tuners.tuner import PlacedTuner

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@dataclass
class BottleneckConfig(PeftConfig):
    """Options of `BottleneckModel`.

    Attributes:
        r: width of the bottleneck.
        placement: ``houlsby``, ``pfeiffer`` or ``parallel``.
        scaling: factor s of what the adapter adds.
        activation: between its two matrices, by transformers' names.
        drop_layers: the lowest layers of every stack, which get none.
        target_modules: modules that get one, instead of ``placement`` and ``drop_layers``.
    """

    r: int = field(default=64)
    placement: str = field(default="houlsby")
    scaling: float = field(default=1.0)
    activation: str = field(default="relu")
    drop_layers: int = field(default=0)
    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BOTTLENECK"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement is one of {', '.join(PLACEMENTS)}, not {self.placement}")
        if self.activation not in ACT2FN:
            raise ValueError(f"transformers has no activation {self.activation}")


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module plus s U f(D h + d) + u, h being its output, or its input where the adapter stands beside it.

    D [r, width] starts as a linear layer's weight does, U [width, r] and both biases at zero.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_down_bias", "bottleneck_up", "bottleneck_up_bias")

    def __init__(self, base_layer: nn.Module, adapter_name: str, width: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.bottleneck_down = nn.ParameterDict()
        self.bottleneck_down_bias = nn.ParameterDict()
        self.bottleneck_up = nn.ParameterDict()
        self.bottleneck_up_bias = nn.ParameterDict()
        self.configs: dict[str, BottleneckConfig] = {}
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter to the module."""
        parameter = next(self.base_layer.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        options: dict[str, Any] = {"device": parameter.device, "dtype": dtype}
        down = nn.Linear(self.width, config.r, **options)
        self.bottleneck_down[adapter_name] = down.weight
        self.bottleneck_down_bias[adapter_name] = nn.Parameter(torch.zeros(config.r, **options))
        self.bottleneck_up[adapter_name] = nn.Parameter(torch.zeros(self.width, config.r, **options))
        self.bottleneck_up_bias[adapter_name] = nn.Parameter(torch.zeros(self.width, **options))
        self.configs[adapter_name] = config
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the module's output [..., width] with what the active adapters add."""
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                read = hidden if self.configs[name].placement == "parallel" else output
                output = output + self._added(name, read).to(output.dtype)
        return output

    def _added(self, name: str, hidden: Tensor) -> Tensor:
        config, down = self.configs[name], self.bottleneck_down[name]
        inner = ACT2FN[config.activation](
            nn.functional.linear(hidden.to(down.dtype), down, self.bottleneck_down_bias[name])
        )
        return config.scaling * nn.functional.linear(inner, self.bottleneck_up[name], self.bottleneck_up_bias[name])


class BottleneckModel(PlacedTuner):
    """A model with bottleneck adapters in its layers; they cannot be merged."""

    prefix = "bottleneck_"
    tuner_layer_cls: type[BottleneckLayer] = BottleneckLayer

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the sublayers, or their last matrices, by the config's placement."""
        return _places(model, config)

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the module with an adapter behind or beside it."""
        return BottleneckLayer(target, adapter_name, width_of(target, self.get_model_config(self.model)), config)

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another adapter to the module."""
        layer.update_layer(adapter_name, config)

    def _check_merge_allowed(self) -> None:
        # the error by which peft's own tuners refuse a merge that their method rules out
        raise NotImplementedError("what stands behind an activation has no equivalent in the weights")


def _places(model: nn.Module, config: BottleneckConfig) -> list[str]:
    parts = ("o", "down") if config.placement == "houlsby" else ("down",)
    found = matrices_of(model, *parts)
    chosen = {name: place for name, place in found.items() if (place.layer or 0) >= config.drop_layers}
    if not found:
        raise ValueError("the last matrices of attention and feed-forward were not found; name target_modules")
    if not chosen:
        raise ValueError(f"drop_layers: {config.drop_layers} leaves no layer with an adapter")
    if config.placement != "parallel":
        return list(chosen)
    firsts = {name.rpartition(".")[0] for name in matrices_of(model, "up", "gate_up", "gate")}
    sublayers = {name.rpartition(".")[0] for name in chosen}
    if not sublayers <= firsts:
        raise ValueError("the feed-forward is no module of its own here; houlsby and pfeiffer need none")
    return sorted(sublayers)
