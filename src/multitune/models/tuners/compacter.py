"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products (arXiv:2106.04647).

Shape legend: ``n`` terms of a sum, ``I`` and ``O`` inputs and outputs of a matrix.
"""

from __future__ import annotations

import math
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


@dataclass
class CompacterConfig(PeftConfig):
    """Options of `CompacterModel`.

    Attributes:
        r: width of the bottleneck; a multiple of n.
        n: Kronecker products per matrix; must divide the widths.
        activation: between the two matrices, by transformers' names.
        target_modules: modules behind which an adapter stands; None: the last matrices of attention and feed-forward.
    """

    r: int = field(default=24)
    n: int = field(default=4)
    activation: str = field(default="gelu")
    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["COMPACTER"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if self.r % self.n:
            raise ValueError(f"r: {self.r} is no multiple of n: {self.n}")
        if self.activation not in ACT2FN:
            raise ValueError(f"transformers has no activation {self.activation}")


def kronecker_matrix(shared_nnn: Tensor, left_nI: Tensor, right_nO: Tensor) -> Tensor:
    """Return the matrix [I, O] = sum over i of A_i (x) s_i t_i', with A shared and s_i t_i' of rank one.

    Args:
        shared_nnn: the n matrices A_i, [n, n, n].
        left_nI: s_i [n, I / n].
        right_nO: t_i [n, O / n].
    """
    product = torch.einsum("iab,ic,id->acbd", shared_nnn, left_nI, right_nO)
    return product.reshape(shared_nnn.shape[1] * left_nI.shape[1], shared_nnn.shape[2] * right_nO.shape[1])


class CompacterLayer(nn.Module, BaseTunerLayer):
    """A module plus f(h D + d) U + u, h being its output: U's right factor and both biases start at zero.

    The matrices A_i are one parameter of all layers, which the first of them holds.
    """

    adapter_layer_names = (
        "compacter_down_left",
        "compacter_down_right",
        "compacter_up_left",
        "compacter_up_right",
        "compacter_bias",
        "compacter_shared",
    )

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.compacter_down_left = nn.ParameterDict()
        self.compacter_down_right = nn.ParameterDict()
        self.compacter_up_left = nn.ParameterDict()
        self.compacter_up_right = nn.ParameterDict()
        self.compacter_bias = nn.ParameterDict()
        self.compacter_shared = nn.ParameterDict()
        self.configs: dict[str, CompacterConfig] = {}
        self.holders: dict[str, tuple[CompacterLayer]] = {}  # in a tuple, so that torch sees no submodule

    def update_layer(
        self, adapter_name: str, config: CompacterConfig, width: int, holder: CompacterLayer | None
    ) -> None:
        """Add an adapter to the module; without a holder the layer holds the shared matrices itself."""
        if width % config.n:
            raise ValueError(f"n: {config.n} does not divide a width of {width}")
        parameter = next(self.base_layer.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        place: dict[str, Any] = {"device": parameter.device, "dtype": dtype}
        n, outer, inner = config.n, width // config.n, config.r // config.n
        # entries of a matrix have variance 1 / d_in: sums of n products of three factors
        self.compacter_down_left[adapter_name] = nn.Parameter(torch.randn(n, outer, **place) * math.sqrt(1 / outer))
        self.compacter_down_right[adapter_name] = nn.Parameter(torch.randn(n, inner, **place))
        self.compacter_up_left[adapter_name] = nn.Parameter(torch.randn(n, inner, **place) * math.sqrt(1 / inner))
        self.compacter_up_right[adapter_name] = nn.Parameter(torch.zeros(n, outer, **place))
        self.compacter_bias[adapter_name] = nn.Parameter(torch.zeros(config.r + width, **place))
        if holder is None:
            self.compacter_shared[adapter_name] = nn.Parameter(torch.randn(n, n, n, **place) / n)
        self.holders[adapter_name] = (holder or self,)
        self.configs[adapter_name] = config
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the module's output [..., width] with what the active adapters add."""
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            if name in self.configs:
                output = output + self._added(name, output).to(output.dtype)
        return output

    def _added(self, name: str, hidden: Tensor) -> Tensor:
        config = self.configs[name]
        shared = self.holders[name][0].compacter_shared[name]
        down = kronecker_matrix(shared, self.compacter_down_left[name], self.compacter_down_right[name])
        up = kronecker_matrix(shared, self.compacter_up_left[name], self.compacter_up_right[name])
        bias_down, bias_up = self.compacter_bias[name].split([config.r, len(self.compacter_bias[name]) - config.r])
        return ACT2FN[config.activation](hidden.to(down.dtype) @ down + bias_down) @ up + bias_up


class CompacterModel(PlacedTuner):
    """A model with Compacter adapters in its layers; they cannot be merged."""

    prefix = "compacter_"
    tuner_layer_cls = CompacterLayer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_holders", {})  # before the layers are placed, and before torch takes attributes
        super().__init__(*args, **kwargs)

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the last matrices of attention and feed-forward."""
        if found := matrices_of(model, "o", "down"):
            return list(found)
        raise ValueError("the last matrices of attention and feed-forward were not found; name target_modules")

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the module with an adapter behind it."""
        layer = CompacterLayer(target)
        self.more(layer, path, adapter_name, config)
        return layer

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another adapter to the module; the first module of an adapter holds what all share."""
        width = width_of(layer.get_base_layer(), self.get_model_config(self.model))
        layer.update_layer(adapter_name, config, width, self._holders.get(adapter_name))
        self._holders.setdefault(adapter_name, layer)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self._holders.pop(adapter_name, None)

    def _check_merge_allowed(self) -> None:
        # the error by which peft's own tuners refuse a merge that their method rules out
        raise NotImplementedError("what stands behind an activation has no equivalent in the weights")
