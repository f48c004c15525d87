"""BitFit: only biases train (arXiv:2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn

from multitune.models.tuners.places import matrices_of
from multitune.models.tuners.tuner import PlacedTuner


@dataclass
class BitFitConfig(PeftConfig):
    """Options of `BitFitModel`.

    Attributes:
        target_modules: modules whose biases train; None: all that have one.
        part: ``all``, or ``query_and_intermediate``: only those of the queries and of the feed-forward's first matrix,
            the smaller choice of the paper (section 4).
    """

    target_modules: list[str] | str | None = field(default=None)
    part: str = field(default="all")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A linear layer or norm, plus a trained change of its bias: y = base(x) + change, which starts at zero."""

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self.update_layer(adapter_name)

    def update_layer(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Add an adapter to the layer."""
        base: Any = self.get_base_layer()
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros_like(base.bias))
        self.set_adapter(adapter_name, inference_mode=inference_mode)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, the bias changed by the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        for name in self.active_adapters:
            if name in self.bitfit_bias:
                output = output + self.bitfit_bias[name].to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the change into the bias."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.bitfit_bias:
                bias: Any = self.get_base_layer().bias
                bias.data += self.bitfit_bias[name].data.to(bias.dtype)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the change out of the bias."""
        while self.merged_adapters:
            bias: Any = self.get_base_layer().bias
            bias.data -= self.bitfit_bias[self.merged_adapters.pop()].data.to(bias.dtype)


class BitFitModel(PlacedTuner):
    """A model of which only biases train (arXiv:2106.10199)."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the modules that have a bias."""
        return _with_bias(model, config.part)

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the layer with a change of its bias."""
        if getattr(target, "bias", None) is None:
            raise ValueError(f"the module {path} has no bias")
        return BitFitLayer(target, adapter_name)

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another change of its bias."""
        layer.update_layer(adapter_name, inference_mode=config.inference_mode)


def _with_bias(model: nn.Module, part: str) -> list[str]:
    if part not in ("all", "query_and_intermediate"):
        raise ValueError(f"part is all or query_and_intermediate, not {part}")
    chosen = set(matrices_of(model, "q", "up")) if part != "all" else None
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
        and (chosen is None or name.removesuffix(".base_layer") in chosen)
    ]
    if not names:
        raise ValueError("no module of this architecture has such a bias; ln_tuning and beft need none")
    return names
