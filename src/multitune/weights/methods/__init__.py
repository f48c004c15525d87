"""The ways to merge one tensor. Importing it loads torch.

A method is a pure function ``(base, deltas, parameters, layer) -> tensor`` of pieces of a flattened tensor in float32:
``base`` [n], ``deltas`` [T, n] (overwritten). Where a method must know the whole tensor first (the k-th largest
magnitude, a norm), ``STATISTICS`` has a function ``(stream, parameters, layer) -> statistics`` for it, and the method
finds the result in ``layer.statistics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from multitune.weights.methods.half_reset import half_reset
from multitune.weights.methods.layer import Layer
from multitune.weights.methods.masks import find_band, find_top, keep_band, keep_top
from multitune.weights.methods.sums import linear, passthrough, task_arithmetic
from multitune.weights.methods.trimmed import breadcrumbs, breadcrumbs_ties, ties
from multitune.weights.parameters import METHOD_PARAMETERS, default_of
from multitune.weights.streaming import Stored, Stream

Method = Callable[[torch.Tensor, torch.Tensor, Mapping[str, Any], Layer], torch.Tensor]

METHODS: dict[str, Method] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "half_reset": half_reset,
    "passthrough": passthrough,
}

STATISTICS: dict[str, Callable[[Stream, Mapping[str, Any], Layer], Any]] = {
    "ties": find_top,
    "breadcrumbs": find_band,
    "breadcrumbs_ties": find_band,
}

MASKS: dict[str, Callable[[torch.Tensor, Mapping[str, Any], Layer], torch.Tensor]] = {
    "ties": keep_top,
    "breadcrumbs": keep_band,
    "breadcrumbs_ties": keep_band,
}
"""What a method keeps of the deltas [T, n] before it joins them; methods that keep all are not listed."""


def merge_tensors(
    method: str,
    base: torch.Tensor,
    deltas: Sequence[torch.Tensor],
    parameters: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    seed: int = 0,
    compat: str = "authors",
) -> torch.Tensor:
    """Merge tensors that are in memory; the same arithmetic as a merge of files, to the bit.

    Args:
        method: a key of ``METHODS``.
        base: the base's tensor; zeros for a method on weights.
        deltas: T tensors of its shape: task vectors, or weights for a method on weights.
        parameters: numbers and words by name; one that each model may have is a list of T, or one for all.
        name: of the tensor; random masks depend on it.
        seed: of random masks.
        compat: as in ``MergeConfig``.

    Returns:
        float32, of the base's shape.
    """
    told = dict(parameters or {})
    full: dict[str, Any] = {}
    for key, parameter in METHOD_PARAMETERS[method].items():
        value = told.pop(key, default_of(parameter, compat))
        full[key] = (
            list(value) if isinstance(value, list | tuple) else [value] * len(deltas) if parameter.each else value
        )
    if told:
        raise KeyError(f"{method} has no parameter {sorted(told)}")
    flat = [Stored(delta.float().reshape(-1), relative=True) for delta in deltas]
    layer = Layer(name, tuple(base.shape), seed=seed, compat=compat)
    stream = Stream(Stored(base.float().reshape(-1)), flat, tuple(base.shape), chunk=max(base.numel(), 1))
    if method in STATISTICS:
        layer = replace(layer, statistics=STATISTICS[method](stream, full, layer))
    if not base.numel():
        return base.float()
    chunk = stream.read(0)
    return METHODS[method](chunk.base, chunk.deltas, full, layer).reshape(base.shape)
