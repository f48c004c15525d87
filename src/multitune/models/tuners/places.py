"""Where our tuners act when the user names no modules: found by the architecture index, for every architecture."""

from __future__ import annotations

from typing import Any

from multitune.models.architecture import TensorPlace, architecture_index


def matrices_of(model: Any, *parts: str) -> dict[str, TensorPlace]:
    """Return module path -> place of the matrices with one of the parts ("o", "down", ...) inside the layers.

    Experts of a mixture are left out: only their router sees every token.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
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
