"""What can be done where a method cannot be placed on an architecture: found by placing others on its shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.methods import METHODS, NOT_OFFERED, REQUIRED, WITHOUT_ADAPTER
from multitune.errors import MultituneError

NAMED = 5
"""So many methods of the same family are named at most, beside LoRA; each is tried, which takes a moment."""


class NotPlaced(MultituneError):
    """A method has no place on an architecture."""


def instead_of(
    config: AdaptationConfig, base: Any, *, quantized: bool, place: Callable[[Any, AdaptationConfig], Any]
) -> str:
    """Return a sentence about what can be placed on a model instead: the method by its defaults, or other methods.

    Args:
        config: what cannot be.
        base: a transformers model that it was to adapt; it stays as it is.
        quantized: whether its weights are in 4 or 8 bits.
        place: puts a method on a model, or raises NotPlaced.
    """
    import torch

    architecture = type(base).__name__

    def can(other: str) -> bool:
        with torch.device("meta"):
            empty = type(base)(copy.deepcopy(base.config)).requires_grad_(False)
        try:
            place(empty, AdaptationConfig(method=other))
        except (NotPlaced, NotImplementedError, RuntimeError):  # the latter: torch has no values to decompose there
            return False
        return True

    def found() -> Iterator[str]:
        for other, method in METHODS.items():
            offered = other not in (config.method, "lora", *NOT_OFFERED, *REQUIRED, *WITHOUT_ADAPTER)
            of_family = method.family == METHODS[config.method].family
            if offered and of_family and (method.quantised or not quantized) and can(other):
                yield other

    if config.options and config.method not in REQUIRED and can(config.method):
        return f"Change the option it speaks of: with its defaults '{config.method}' has a place on {architecture}."
    names = [*islice(found(), NAMED), *(["lora"] if config.method != "lora" and can("lora") else [])]
    if not names:
        return "Choose a method that trains the weights themselves: full, half or child_tuning."
    return f"These can adapt {architecture}: {', '.join(names)}; `multitune methods --model` tells of all."
