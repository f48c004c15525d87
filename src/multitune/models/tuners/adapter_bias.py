"""AdapterBias: a shift behind the feed-forward, one vector per layer, scaled by every token (arXiv:2205.00305)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn

from multitune.models.tuners.places import matrices_of, width_of
from multitune.models.tuners.tuner import PlacedTuner


@dataclass
class AdapterBiasConfig(PeftConfig):
    """Options of `AdapterBiasModel`.

    Attributes:
        target_modules: linear layers behind which a shift is added; None: the last matrix of every feed-forward.
    """

    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ADAPTER_BIAS"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class AdapterBiasLayer(nn.Module, BaseTunerLayer):
    """A linear layer plus v (w . h + b), h being its output: v starts at zero, w as a linear layer does."""

    adapter_layer_names = ("adapter_bias_v", "adapter_bias_w", "adapter_bias_b")

    def __init__(self, base_layer: nn.Module, adapter_name: str, inference_mode: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter_bias_v = nn.ParameterDict()
        self.adapter_bias_w = nn.ParameterDict()
        self.adapter_bias_b = nn.ParameterDict()
        self.update_layer(adapter_name, inference_mode)

    def update_layer(self, adapter_name: str, inference_mode: bool) -> None:
        """Add an adapter to the layer."""
        parameter = next(self.base_layer.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        options: dict[str, Any] = {"device": parameter.device, "dtype": dtype}
        linear = nn.Linear(width_of(self.get_base_layer(), {}), 1, **options)
        self.adapter_bias_v[adapter_name] = nn.Parameter(torch.zeros_like(linear.weight[0]))
        self.adapter_bias_w[adapter_name] = nn.Parameter(linear.weight[0].detach().clone())
        self.adapter_bias_b[adapter_name] = linear.bias
        self.set_adapter(adapter_name, inference_mode=inference_mode)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output [..., width] with the shifts of the active adapters."""
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            if name in self.adapter_bias_v:
                vector = self.adapter_bias_v[name]
                scale = output.to(vector.dtype) @ self.adapter_bias_w[name] + self.adapter_bias_b[name]
                output = output + (scale[..., None] * vector).to(output.dtype)
        return output


class AdapterBiasModel(PlacedTuner):
    """A model with token-dependent shifts behind its feed-forwards; they are not merged."""

    prefix = "adapter_bias_"
    tuner_layer_cls = AdapterBiasLayer

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the last matrices of the feed-forwards."""
        if found := matrices_of(model, "down"):
            return list(found)
        raise ValueError("the last matrices of the feed-forwards were not found; name target_modules")

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the layer with a shift behind it."""
        return AdapterBiasLayer(target, adapter_name, config.inference_mode)

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another shift behind it."""
        layer.update_layer(adapter_name, config.inference_mode)

    def _check_merge_allowed(self) -> None:
        # I + v w' could be multiplied into the weight, but b v needs a bias, which most of these layers lack
        raise NotImplementedError("the shift of a token has no equivalent in a layer without a bias")
