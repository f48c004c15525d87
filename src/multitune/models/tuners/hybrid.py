"""MAM and UniPELT: learned keys and values in every attention, and adapters at every feed-forward, in one adapter.

MAM (arXiv:2110.04366) has adapters beside the feed-forwards, scaled. UniPELT (arXiv:2110.07577) has adapters behind
them, LoRA on queries and values, and for each of the three a gate sigmoid(w h + b) of every token in every layer. Where
its paper multiplies the learned keys and values by their gate, here the gate multiplies the weights that the softmax
gives them: keys of zero would still take weight from the text, and a gate of zero would not be the base.

What one layer of transformers tells another passes through its input: the matrix of the queries reads what attention
reads, and holds the keys and values; the first matrix of a feed-forward reads what the feed-forward reads, and the last
one adds to what it puts out.

Shape legend: as in `multitune.models.tuners.prefix_attention`; ``d`` width of an input, ``E`` width of all keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from multitune.models.architecture import TensorPlace
from multitune.models.tuners.hybrid_config import HybridConfig, MamConfig, UniPeltConfig
from multitune.models.tuners.places import matrices_of, matrix_widths
from multitune.models.tuners.prefix_attention import CARRIER, carry_prefixes, end_prefixes
from multitune.models.tuners.tuner import PlacedTuner

__all__ = ["MamConfig", "MamModel", "UniPeltConfig", "UniPeltModel"]

ATTENTION = ("q", "qkv")
FIRST = ("up", "gate_up")
SMALL = 0.02
"""Standard deviation of keys and values at the start."""


class HybridLayer(nn.Module, BaseTunerLayer):
    """A matrix of the base with a part of an adapter."""

    adapter_layer_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.configs: dict[str, HybridConfig] = {}

    def add(self, adapter_name: str, config: HybridConfig, values: Mapping[str, Tensor]) -> None:
        """Add a part of an adapter that starts with these values."""
        parameter = next(self.base_layer.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        for name, value in values.items():
            getattr(self, name)[adapter_name] = nn.Parameter(value.to(parameter.device, dtype))
        self.configs[adapter_name] = config
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def acting(self) -> list[str]:
        """Return the adapters that act now and have a part here."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.configs]

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)


def _scores(gate: Tensor, hidden: Tensor) -> Tensor:
    """Return w h + b for every token [..., 1]; the gate [d + 1] holds w and b."""
    return (hidden.to(gate.dtype) @ gate[:-1] + gate[-1])[..., None]


class AttentionInput(HybridLayer):
    """A matrix that attention reads its input by: W x + g_L (alpha / r) B A x; that of the queries holds the prefix.

    A [r, d] starts uniform within 1 / sqrt(d), B [o, r] and the gates at zero, which is one half.
    """

    adapter_layer_names = ("prefix_keys", "prefix_values", "prefix_gate", "low_rank_a", "low_rank_b", "low_rank_gate")
    prefix_keys: nn.ParameterDict
    prefix_values: nn.ParameterDict
    prefix_gate: nn.ParameterDict
    low_rank_a: nn.ParameterDict
    low_rank_b: nn.ParameterDict
    low_rank_gate: nn.ParameterDict

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self._log_gates: dict[str, Tensor] = {}

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the matrix's output for an input [B, Q, d]."""
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        self._log_gates.clear()
        for name in self.acting():
            if name in self.prefix_gate:
                self._log_gates[name] = nn.functional.logsigmoid(_scores(self.prefix_gate[name], hidden))
            config = self.configs[name]
            if isinstance(config, UniPeltConfig):
                a, b = self.low_rank_a[name], self.low_rank_b[name]
                gate = torch.sigmoid(_scores(self.low_rank_gate[name], hidden))
                change = config.lora_alpha / config.lora_r * (hidden.to(a.dtype) @ a.T) @ b.T
                output = output + (gate * change).to(output.dtype)
        return output

    def prefixes(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Return keys and values [l, E], and logarithms of their weights, of every adapter that acts."""
        return [
            (self.prefix_keys[name], self.prefix_values[name], self._log_gates.pop(name, None))
            for name in self.acting()
            if name in self.prefix_keys
        ]


class FeedForwardInput(HybridLayer):
    """The first matrix of a feed-forward, which keeps what it read for the last one."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self._read: Tensor | None = None

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the matrix's output."""
        self._read = hidden if self.acting() else None
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        return output

    def take(self) -> Tensor:
        """Return what was read last, and forget it."""
        read, self._read = self._read, None
        if read is None:
            raise ValueError("the last matrix of a feed-forward was called before its first one")
        return read


class FeedForwardOutput(HybridLayer):
    """The last matrix of a feed-forward y = FFN(h): y + s U f(D h) beside it (MAM), y + g U f(D y) behind (UniPELT).

    D [r, d] starts as a linear layer's weight does; U [d, r], both biases and the gate, which reads h, at zero.
    """

    adapter_layer_names = ("adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias", "adapter_gate")
    adapter_down: nn.ParameterDict
    adapter_down_bias: nn.ParameterDict
    adapter_up: nn.ParameterDict
    adapter_up_bias: nn.ParameterDict
    adapter_gate: nn.ParameterDict

    def __init__(self, base_layer: nn.Module, firsts: dict[Any, FeedForwardInput], key: Any) -> None:
        super().__init__(base_layer)
        self.firsts, self.key = firsts, key

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the feed-forward's output with what the active adapters add."""
        output: Tensor = self.base_layer(hidden, *args, **kwargs)
        names = self.acting()
        if not names:
            return output
        read, plain = self.firsts[self.key].take(), output
        for name in names:
            config = self.configs[name]
            if isinstance(config, MamConfig):
                added = config.scaling * self._bottleneck(name, read)
            else:
                added = torch.sigmoid(_scores(self.adapter_gate[name], read)) * self._bottleneck(name, plain)
            output = output + added.to(output.dtype)
        return output

    def _bottleneck(self, name: str, hidden: Tensor) -> Tensor:
        down = self.adapter_down[name]
        inner = nn.functional.linear(hidden.to(down.dtype), down, self.adapter_down_bias[name])
        inner = ACT2FN[self.configs[name].activation](inner)
        return nn.functional.linear(inner, self.adapter_up[name], self.adapter_up_bias[name])


class HybridModel(PlacedTuner):
    """A model whose attentions read learned keys and values, and whose feed-forwards have adapters; never merged."""

    tuner_layer_cls = HybridLayer
    more_parts: tuple[str, ...] = ()
    """Matrices of attention that get a part beside that of the queries."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Place the parts, then let the attentions read theirs."""
        self.__dict__["_found"] = matrices_of(model, *ATTENTION, *self.more_parts, *FIRST, "k", "kv", "down")
        self.__dict__.setdefault("_firsts", {})
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        modules = dict(model.named_modules())
        for path, layer in modules.items():
            if isinstance(layer, AttentionInput) and layer.prefix_keys:
                attention = modules[path.rpartition(".")[0]]
                if CARRIER not in attention.__dict__:
                    carry_prefixes(attention, layer)
            if isinstance(layer, FeedForwardOutput) and layer.key not in self._firsts:
                raise ValueError(f"the first matrix of the feed-forward of {path} was not found, or is no target")

    def places(self, model: nn.Module, config: Any) -> list[str]:
        """Return the matrices of queries, of what else is adapted in attention, and of feed-forwards."""
        parts = (*ATTENTION, *self.more_parts, *FIRST, "down")
        found = {path: place.part for path, place in self._found.items() if place.part in parts}
        if not set(found.values()) & set(ATTENTION) or "down" not in found.values():
            raise ValueError("the matrices of queries and feed-forwards were not found in this architecture")
        return list(found)

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return a matrix with its part."""
        place = self._place(path)
        if place.part == "down":
            layer: HybridLayer = FeedForwardOutput(target, self._firsts, _network(place))
        elif place.part in FIRST:
            layer = self._firsts[_network(place)] = FeedForwardInput(target)
        else:
            layer = AttentionInput(target)
        self.more(layer, path, adapter_name, config)
        return layer

    def more(self, layer: Any, path: str, adapter_name: str, config: Any) -> None:
        """Add another adapter's part to a matrix."""
        place = self._place(path)
        inputs, outputs = matrix_widths(layer.get_base_layer(), path)
        values: dict[str, Tensor] = {}
        if place.part == "down":
            values = _adapter(outputs, config)
            if isinstance(config, UniPeltConfig):
                first = self._firsts.get(_network(place))
                width = outputs if first is None else matrix_widths(first.get_base_layer(), path)[0]
                values["adapter_gate"] = torch.zeros(width + 1)
        elif place.part not in FIRST:
            values = self._attention_part(path, place, config, inputs, outputs)
        layer.add(adapter_name, config, values)

    def _attention_part(
        self, path: str, place: TensorPlace, config: HybridConfig, inputs: int, outputs: int
    ) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        gated = isinstance(config, UniPeltConfig)
        if place.part in ATTENTION:
            width = self._width_of_keys(path)
            for name in ("prefix_keys", "prefix_values"):
                values[name] = SMALL * torch.randn(config.prefix_length, width)
            if gated:
                values["prefix_gate"] = torch.zeros(inputs + 1)
        if isinstance(config, UniPeltConfig):
            values["low_rank_a"] = torch.empty(config.lora_r, inputs).uniform_(-1, 1) / math.sqrt(inputs)
            values["low_rank_b"] = torch.zeros(outputs, config.lora_r)
            values["low_rank_gate"] = torch.zeros(inputs + 1)
        return values

    def _width_of_keys(self, path: str) -> int:
        attention = path.rpartition(".")[0]
        for other, place in self._found.items():
            if other.rpartition(".")[0] == attention and place.part in ("k", "kv"):
                module: Any = self.model.get_submodule(other)
                outputs = matrix_widths(module, other)[1]
                return outputs if place.part == "k" else outputs // 2
        config = self.model.config.get_text_config()
        heads: int = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return int(width) * int(getattr(config, "num_key_value_heads", None) or heads)

    def _place(self, path: str) -> TensorPlace:
        place: TensorPlace | None = self._found.get(path)
        if place is None:
            raise ValueError(f"the module {path} is neither of queries or values nor of a feed-forward")
        return place

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = super()._unload_and_optionally_merge(*args, **kwargs)
        end_prefixes(base)
        return base

    def _check_merge_allowed(self) -> None:
        # the error by which peft's own tuners refuse a merge that their method rules out
        raise NotImplementedError(
            "learned keys, and what stands behind an activation, have no equivalent in the weights"
        )


def _network(place: TensorPlace) -> tuple[Any, ...]:
    """Return what the first and the last matrix of a feed-forward have in common."""
    return place.stack, place.layer, place.group


def _adapter(width: int, config: HybridConfig) -> dict[str, Tensor]:
    return {
        "adapter_down": torch.empty(config.r, width).uniform_(-1, 1) / math.sqrt(width),
        "adapter_down_bias": torch.zeros(config.r),
        "adapter_up": torch.zeros(width, config.r),
        "adapter_up_bias": torch.zeros(width),
    }


class MamModel(HybridModel):
    """A model with prefixes in attention and scaled adapters beside the feed-forwards (arXiv:2110.04366)."""

    prefix = "mam_"


class UniPeltModel(HybridModel):
    """A model with gated prefixes, gated LoRA on queries and values, and gated adapters (arXiv:2110.07577)."""

    prefix = "unipelt_"
    more_parts = ("v", "kv")
