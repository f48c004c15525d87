"""Where our tuners act when the user names no modules: found by the architecture index, for every architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from multitune.models.architecture import TensorPlace, architecture_index


def matrices_of(model: Any, *parts: str) -> dict[str, TensorPlace]:
    """Return module path -> place of the matrices with one of the parts ("o", "down", ...) inside the layers.

    Experts of a mixture are left out: only their router sees every token. A matrix that holds an adapter is found by
    its own path.
    """
    shapes = {name.replace(".base_layer.", "."): tuple(p.shape) for name, p in model.named_parameters()}
    modules = dict(model.named_modules())
    return {
        place.unit: place
        for name, place in architecture_index(shapes).items()
        if place.layer is not None
        and place.part in parts
        and name.endswith(".weight")
        and place.unit in modules
        and not place.group.startswith("experts")
    }


def width_of(module: Any, config: Mapping[str, Any]) -> int:
    """Return the width of a module's output: of a matrix its own, of a whole sublayer the model's.

    Args:
        module: of a transformers model.
        config: the model's, as a mapping.

    Raises:
        ValueError: neither tells.
    """
    if isinstance(module, nn.Linear):
        return module.out_features
    if hasattr(module, "nf"):  # transformers' Conv1D
        return int(module.nf)
    for name in ("hidden_size", "d_model", "n_embd"):
        if name in config:
            return int(config[name])
    raise ValueError(f"the width of {type(module).__name__} is not known; name linear layers as target_modules")


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm with a gain that could train."""
    weight = getattr(module, "weight", None)
    return "Norm" in type(module).__name__ and isinstance(weight, nn.Parameter) and weight.ndim == 1


def matrix_widths(module: Any, path: str) -> tuple[int, int]:
    """Return the widths of a linear layer's input and output.

    Raises:
        ValueError: it is none.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if hasattr(module, "nf"):  # transformers' Conv1D
        return int(module.nx), int(module.nf)
    raise ValueError(f"the module {path} is no linear layer")


def stacks_of(model: Any) -> list[Any]:
    """Return the modules that read tokens and hold the layers: encoder and decoder, or the one there is.

    They are called once for a forward, and not again where a layer is computed anew in the backward pass.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return [model.get_encoder(), model.get_decoder()]
    return [model.get_decoder() if hasattr(model, "get_decoder") else model]
