"""DiffFit: biases and norms train, and a factor for what every sublayer adds (arXiv:2304.06648)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn
from torch.func import functional_call

from multitune.models.tuners.places import is_norm, matrices_of
from multitune.models.tuners.tuner import PlacedTuner


@dataclass
class DiffFitConfig(PeftConfig):
    """Options of `DiffFitModel`.

    Attributes:
        target_modules: modules that train in one of the three ways; None: all that have a bias, are a norm, or are the
            last matrix of attention or feed-forward.
    """

    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["DIFF_FIT"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class DiffFitLayer(nn.Module, BaseTunerLayer):
    """A layer whose bias, and as a norm its gain, are changed, and whose output, as a last matrix, is scaled.

    The changes start at zero, the factor at one.
    """

    adapter_layer_names = ("diff_fit_bias", "diff_fit_gain", "diff_fit_factor")

    def __init__(self, base_layer: nn.Module, adapter_name: str, *, scaled: bool, inference_mode: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaled = scaled
        self.diff_fit_bias = nn.ParameterDict()
        self.diff_fit_gain = nn.ParameterDict()
        self.diff_fit_factor = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self.update_layer(adapter_name, inference_mode)

    def update_layer(self, adapter_name: str, inference_mode: bool) -> None:
        """Add an adapter to the layer."""
        base: Any = self.get_base_layer()
        if isinstance(getattr(base, "bias", None), nn.Parameter):
            self.diff_fit_bias[adapter_name] = nn.Parameter(torch.zeros_like(base.bias))
        if is_norm(base):
            self.diff_fit_gain[adapter_name] = nn.Parameter(torch.zeros_like(base.weight))
        if self.scaled:
            weight = base.weight
            dtype = weight.dtype if weight.is_floating_point() else torch.float32
            self.diff_fit_factor[adapter_name] = nn.Parameter(torch.ones(1, device=weight.device, dtype=dtype))
        self.set_adapter(adapter_name, inference_mode=inference_mode)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output as the active adapters change it."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            plain: Tensor = self.base_layer(hidden, *args, **kwargs)
            return plain
        gains = [self.diff_fit_gain[name] for name in self.active_adapters if name in self.diff_fit_gain]
        if gains:
            base: Any = self.get_base_layer()
            gain = base.weight + torch.stack(gains).sum(0).to(base.weight.dtype)
            output: Tensor = functional_call(base, {"weight": gain}, (hidden, *args), kwargs)
        else:
            output = self.base_layer(hidden, *args, **kwargs)
        for name in self.active_adapters:
            if name in self.diff_fit_bias:
                output = output + self.diff_fit_bias[name].to(output.dtype)
            if name in self.diff_fit_factor:
                output = output * self.diff_fit_factor[name].to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the changes into the layer's own weights."""
        base: Any = self.get_base_layer()
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.diff_fit_gain:
                base.weight.data += self.diff_fit_gain[name].data.to(base.weight.dtype)
            if name in self.diff_fit_bias:
                base.bias.data += self.diff_fit_bias[name].data.to(base.bias.dtype)
            if name in self.diff_fit_factor:
                self._scale(base, self.diff_fit_factor[name].data)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the changes out again."""
        base: Any = self.get_base_layer()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.diff_fit_factor:
                self._scale(base, 1 / self.diff_fit_factor[name].data)
            if name in self.diff_fit_bias:
                base.bias.data -= self.diff_fit_bias[name].data.to(base.bias.dtype)
            if name in self.diff_fit_gain:
                base.weight.data -= self.diff_fit_gain[name].data.to(base.weight.dtype)

    @staticmethod
    def _scale(base: Any, factor: Tensor) -> None:
        for parameter in base.parameters():
            parameter.data *= factor.to(parameter.dtype)


class DiffFitModel(PlacedTuner):
    """A model of which biases, norms, and a factor per sublayer train (arXiv:2304.06648)."""

    prefix = "diff_fit_"
    tuner_layer_cls = DiffFitLayer

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_last", frozenset(matrices_of(model, "o", "down")))  # found while names are its own
        super().__init__(model, *args, **kwargs)

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the modules with a bias, the norms, and the last matrices of the sublayers."""
        return [
            name
            for name, module in model.named_modules()
            if name in self._last or is_norm(module) or isinstance(getattr(module, "bias", None), nn.Parameter)
        ]

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the layer with what it trains."""
        scaled = path in self._last
        if not scaled and not is_norm(target) and getattr(target, "bias", None) is None:
            raise ValueError(f"the module {path} has no bias, is no norm and ends no sublayer")
        return DiffFitLayer(target, adapter_name, scaled=scaled, inference_mode=config.inference_mode)

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another adapter to it."""
        layer.update_layer(adapter_name, config.inference_mode)
