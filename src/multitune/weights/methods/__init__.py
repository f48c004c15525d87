"""The ways to merge one tensor. Importing it loads torch.

A method is a pure function ``(base, deltas, parameters, layer) -> tensor`` of pieces of a flattened tensor in float32:
``base`` [n], ``deltas`` [T, n] (overwritten). Where a method must know the whole tensor first (the k-th largest
magnitude, a norm), ``statistics_of`` finds it in passes over the tensor, and the method reads it in
``layer.statistics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from multitune.weights.methods.agreement import consensus, find_fusion, sce, tall_mask
from multitune.weights.methods.dropped import (
    dare_linear,
    dare_ties,
    della,
    della_linear,
    find_rank_scales,
    find_scales,
    keep_by_rank,
    keep_random,
)
from multitune.weights.methods.half_reset import half_reset
from multitune.weights.methods.layer import Layer
from multitune.weights.methods.masks import MAGNITUDE_MASKS, RANKS, find_survivors
from multitune.weights.methods.spherical import find_gram, model_stock, multislerp, slerp
from multitune.weights.methods.sums import linear, passthrough, task_arithmetic
from multitune.weights.methods.trimmed import breadcrumbs, breadcrumbs_ties, ties
from multitune.weights.parameters import METHOD_PARAMETERS, default_of
from multitune.weights.selection import Map
from multitune.weights.streaming import Stored, Stream

Method = Callable[[torch.Tensor, torch.Tensor, Mapping[str, Any], Layer], torch.Tensor]

METHODS: dict[str, Method] = {
    "linear": linear,
    "slerp": slerp,
    "multislerp": multislerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "model_stock": model_stock,
    "sce": sce,
    "consensus": consensus,
    "tall_mask": tall_mask,
    "half_reset": half_reset,
    "passthrough": passthrough,
}

STATISTICS: dict[str, Callable[[Stream, Mapping[str, Any], Layer], Any]] = {
    "slerp": find_gram,
    "multislerp": find_gram,
    "model_stock": find_gram,
    "sce": find_fusion,
    "dare_linear": find_scales,
    "dare_ties": find_scales,
    "della": find_rank_scales,
    "della_linear": find_rank_scales,
}
"""What a method must know of a whole tensor; methods that rank magnitudes are in ``RANKS``."""

MASKS: dict[str, Callable[[torch.Tensor, Mapping[str, Any], Layer], torch.Tensor]] = {
    **MAGNITUDE_MASKS,
    "dare_linear": keep_random,
    "dare_ties": keep_random,
    "della": keep_by_rank,
    "della_linear": keep_by_rank,
}
"""What a method keeps of the deltas [T, n] before it joins them; methods that keep all are not listed."""


def reads_rows(method: str, parameters: Mapping[str, Any]) -> bool:
    """Tell whether a method ranks entries within rows, so that its pieces must be whole rows."""
    return method in ("della", "della_linear") or parameters.get("granularity") == "row"


def statistics_of(
    method: str, streams: Sequence[Stream], parameters: Mapping[str, Any], layers: Sequence[Layer], each: Map = map
) -> list[Any]:
    """Return what a method must know of each of some tensors, which are ranked together where it ranks magnitudes."""
    if method in RANKS:
        return list(find_survivors(method, streams, parameters, layers, each))
    find = STATISTICS.get(method)
    return [find and find(stream, parameters, layer) for stream, layer in zip(streams, layers, strict=True)]


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
    if not base.numel():
        return base.float()
    rows = reads_rows(method, full)
    stream = Stream(Stored(base.float().reshape(-1)), flat, layer.shape, chunk=base.numel(), whole_rows=rows)
    layer = replace(layer, statistics=statistics_of(method, [stream], full, [layer])[0])
    chunk = stream.read(0)
    return METHODS[method](chunk.base, chunk.deltas, full, layer).reshape(base.shape)
