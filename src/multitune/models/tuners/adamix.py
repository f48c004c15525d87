"""AdaMix: several bottleneck adapters at every place, one drawn for every pass in training (arXiv:2205.12410).

Their first and second matrices are drawn apart, in every layer anew. Inference, and whatever is scored, uses the
average of the matrices, which costs what one adapter costs. The loss between two passes is
`multitune.objectives.consistency`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils import PeftType
from torch import Tensor, nn
from transformers.activations import ACT2FN

from multitune.models.tuners.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel
from multitune.models.tuners.places import stacks_of, width_of


@dataclass
class AdaMixConfig(BottleneckConfig):
    """Options of `AdaMixModel`: those of a bottleneck, and how many there are.

    Attributes:
        r: width of every bottleneck.
        n_modules: adapters at every place, M; the paper takes 4. With 1 it is a plain bottleneck.
    """

    r: int = field(default=16)
    n_modules: int = field(default=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ADAMIX"]
        if self.n_modules < 1:
            raise ValueError(f"n_modules is at least 1, not {self.n_modules}")


class AdaMixLayer(BottleneckLayer):
    """A module plus s U_j f(D_i h + d_i) + u_j, with i and j drawn in training, and averages of all otherwise.

    D [M, r, width] and U [M, width, r] start as those of `BottleneckLayer`, each drawn by itself.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, width: int, config: AdaMixConfig) -> None:
        super().__init__(base_layer, adapter_name, width, config)
        self.drawn: dict[str, tuple[int, int]] = {}

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add M adapters to the module."""
        assert isinstance(config, AdaMixConfig)
        parameter = next(self.base_layer.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        options: dict[str, Any] = {"device": parameter.device, "dtype": dtype}
        modules = config.n_modules
        downs = [nn.Linear(self.width, config.r, **options).weight.detach() for _ in range(modules)]
        self.bottleneck_down[adapter_name] = nn.Parameter(torch.stack(downs))
        self.bottleneck_down_bias[adapter_name] = nn.Parameter(torch.zeros(modules, config.r, **options))
        self.bottleneck_up[adapter_name] = nn.Parameter(torch.zeros(modules, self.width, config.r, **options))
        self.bottleneck_up_bias[adapter_name] = nn.Parameter(torch.zeros(modules, self.width, **options))
        self.configs[adapter_name] = config
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def draw(self) -> None:
        """Choose what acts until the next call, from torch's own generator."""
        self.drawn = {
            name: tuple(torch.randint(len(self.bottleneck_down[name]), (2,)).tolist())
            for name in self.active_adapters
            if name in self.bottleneck_down
        }

    def _added(self, name: str, hidden: Tensor) -> Tensor:
        config = self.configs[name]
        downs, ups = (self.bottleneck_down, self.bottleneck_down_bias), (self.bottleneck_up, self.bottleneck_up_bias)
        if self.training and name in self.drawn:
            first, second = self.drawn[name]
            down, down_bias = (p[name][first] for p in downs)
            up, up_bias = (p[name][second] for p in ups)
        else:
            down, down_bias = (p[name].mean(0) for p in downs)
            up, up_bias = (p[name].mean(0) for p in ups)
        inner = ACT2FN[config.activation](nn.functional.linear(hidden.to(down.dtype), down, down_bias))
        return config.scaling * nn.functional.linear(inner, up, up_bias)


class AdaMixModel(BottleneckModel):
    """A model with a mixture of bottleneck adapters at every place."""

    prefix = "adamix_"
    tuner_layer_cls = AdaMixLayer

    @property
    def needs_two_passes(self) -> bool:
        """Whether training compares two passes with other draws."""
        configs: dict[str, Any] = self.peft_config
        return any(configs[name].n_modules > 1 for name in self.active_adapters)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Place the adapters, and let every pass in training draw."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if "_drawing" not in self.__dict__:
            self.__dict__["_drawing"] = [stack.register_forward_pre_hook(_draw) for stack in stacks_of(model)]

    def new_layer(self, target: Any, path: str, adapter_name: str, config: Any) -> nn.Module:
        """Return the module with its adapters behind or beside it."""
        return AdaMixLayer(target, adapter_name, width_of(target, self.get_model_config(self.model)), config)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        base = super()._unload_and_optionally_merge(*args, **kwargs)
        for hook in self.__dict__.pop("_drawing"):
            hook.remove()
        return base


def _draw(stack: nn.Module, inputs: Any) -> None:
    if stack.training:
        for module in stack.modules():
            if isinstance(module, AdaMixLayer):
                module.draw()
