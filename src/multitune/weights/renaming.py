"""The models of a merge under other names: folders for the names of a recipe, or absolute paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from multitune.weights.config import MergeConfig

Merge = TypeVar("Merge", bound=MergeConfig)


def renamed(config: Merge, name: Callable[[str], str]) -> Merge:
    """Return a merge with every model, the base too, under the name that ``name`` gives for it."""
    models = tuple(each.model_copy(update={"model": name(each.model)}) for each in config.models)
    slices = tuple(
        part.model_copy(
            update={"sources": tuple(each.model_copy(update={"model": name(each.model)}) for each in part.sources)}
        )
        for part in config.slices
    )
    base = name(config.base) if config.base is not None else None
    return config.model_copy(update={"base": base, "models": models, "slices": slices})
