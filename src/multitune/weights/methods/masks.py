"""Which entries of a task vector survive by magnitude: the largest, or a band.

A mask function zeroes the rest of deltas [T, n] in place. What it needs of the whole tensor is found before, by the
statistics function beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

import numpy as np
import torch

from multitune.weights.methods.layer import Layer
from multitune.weights.selection import Cut, Map, cuts, keep_above_, keep_band_
from multitune.weights.streaming import Stream, partial_sums


@dataclass(frozen=True, slots=True)
class Survival:
    """What decides over survival in one tensor, by model.

    Attributes:
        upper: entries above this cut are dropped.
        lower: entries not above this cut are dropped; [] where the piece itself tells (rows).
        scales: factors of the survivors; [] for none.
        majority: the sign that entries whose sum is exactly zero are given.
    """

    upper: list[Cut]
    lower: list[Cut]
    scales: list[float]
    majority: float = 1.0


def top_ranks(parameters: Mapping[str, Any], numel: int, layer: Layer) -> list[tuple[int, int]]:
    """Return the ranks (0, k) that each model keeps: k = int(numel density), at least 1 of a density above 0.

    Over all tensors together (granularity global) the TIES authors take the (numel - int(numel density))-th smallest
    magnitude as threshold and keep it as well: one entry more.
    """
    more = int(parameters["granularity"] == "global" and layer.compat == "authors")
    return [(0, min(max(int(numel * d), 1) + more, numel) if d > 0 else 0) for d in parameters["density"]]


def band_ranks(parameters: Mapping[str, Any], numel: int, layer: Layer) -> list[tuple[int, int]]:
    """Return the ranks (r, r + k) between which entries are kept: r = int(numel drop_top), k = int(numel keep).

    ``remove_first=0`` keeps ranks 1..k, then drops 1..r of them. mergekit keeps k entries whatever happens: it drops
    fewer at the top where they would not suffice, and none at keep = 1.
    """
    ranks = []
    for keep, drop_top in zip(parameters["keep"], parameters["drop_top"], strict=True):
        dropped, kept = int(numel * drop_top), int(numel * keep)
        if layer.compat == "mergekit":
            dropped = min(dropped, numel - kept)
        last = dropped + kept if parameters["remove_first"] else max(kept, dropped)
        ranks.append((dropped, min(last, numel)))
    return ranks


RANKS = {
    "ties": top_ranks,
    "breadcrumbs": band_ranks,
    "breadcrumbs_ties": band_ranks,
}
"""How many entries each model keeps, by method."""


def find_survivors(
    method: str, streams: Sequence[Stream], parameters: Mapping[str, Any], layers: Sequence[Layer], each: Map = map
) -> list[Survival]:
    """Find the borders of magnitude within one tensor, or within all of a model together.

    Args:
        method: a key of ``RANKS``.
        streams: the tensors that are ranked together.
        parameters: the same for all of them.
        layers: of the streams.
        each: ``map``, or one that works on several tensors at once.
    """
    by_row = parameters["granularity"] == "row" or not layers[0].shape
    numel = sum(stream.numel for stream in streams)
    found = [Survival([], [], [])] * len(streams)
    if not by_row or parameters["granularity"] == "global":
        borders = cuts([stream.rows for stream in streams], RANKS[method](parameters, numel, layers[0]), each)
        found = [Survival([upper for upper, _ in own], [lower for _, lower in own], []) for own in borders]
    if method == "ties" and layers[0].compat == "authors":
        majority = _majority(streams, found, parameters, layers, each)
        found = [replace(own, majority=majority) for own in found]
    if parameters["rescale"]:
        mask = MAGNITUDE_MASKS[method]
        found = [
            replace(own, scales=l1_scales(stream, mask, parameters, replace(layer, statistics=own)))
            for own, stream, layer in zip(found, streams, layers, strict=True)
        ]
    return found


def _majority(
    streams: Sequence[Stream],
    found: Sequence[Survival],
    parameters: Mapping[str, Any],
    layers: Sequence[Layer],
    each: Map,
) -> float:
    """Return the sign that most elected signs have."""
    totals = [0] * len(streams)

    def count(number: int) -> None:
        layer = replace(layers[number], statistics=found[number])
        for chunk in streams[number]:
            kept = keep_top(chunk.deltas, parameters, replace(layer, start=chunk.start))
            totals[number] += int(kept.sum(0).sign_().sum(dtype=torch.float64))

    for _ in each(count, range(len(streams))):
        pass
    return 1.0 if sum(totals) >= 0 else -1.0


def l1_scales(stream: Stream, mask: Any, parameters: Mapping[str, Any], layer: Layer) -> list[float]:
    """Return the factor for each model that gives the survivors the sum of magnitudes of all (mergekit's rescaling).

    1 where either sum is below 1e-7.
    """
    before: list[list[float]] = [[] for _ in stream.models]
    after: list[list[float]] = [[] for _ in stream.models]
    for chunk in stream:
        for sums, row in zip(before, chunk.deltas, strict=True):
            sums += partial_sums(row.abs(), stream.unit)
        kept = mask(chunk.deltas, parameters, replace(layer, start=chunk.start))
        for sums, row in zip(after, kept, strict=True):
            sums += partial_sums(row.abs(), stream.unit)
    totals = [(fsum(whole), fsum(rest)) for whole, rest in zip(before, after, strict=True)]
    return [whole / rest if min(whole, rest) >= 1e-7 else 1.0 for whole, rest in totals]


def keep_top(deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Keep the k largest magnitudes of each model."""
    survival: Survival = layer.statistics
    if not survival.lower:  # a tensor without dimensions
        return deltas
    for delta, lower in zip(deltas, survival.lower, strict=True):
        keep_above_(delta, lower, layer.start)
    return scaled(deltas, survival)


def keep_band(deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Keep the band of magnitudes of each model; a tensor without dimensions passes whole."""
    survival: Survival = layer.statistics
    if survival.lower:
        for delta, upper, lower in zip(deltas, survival.upper, survival.lower, strict=True):
            keep_band_(delta, upper, lower, layer.start)
    elif layer.shape:
        ranks = band_ranks(parameters, layer.width, layer)
        for delta, (first, last) in zip(deltas, ranks, strict=True):
            _keep_ranks_of_rows(delta.view(-1, layer.width), first, last)
    return scaled(deltas, survival)


MAGNITUDE_MASKS = {"ties": keep_top, "breadcrumbs": keep_band, "breadcrumbs_ties": keep_band}


def scaled(deltas: torch.Tensor, survival: Survival) -> torch.Tensor:
    for delta, scale in zip(deltas, survival.scales, strict=False):
        delta.mul_(scale)
    return deltas


def _keep_ranks_of_rows(rows: torch.Tensor, first: int, last: int) -> None:
    """Zero, in place, all but ranks first + 1 .. last of every row [R, W]."""
    width = rows.shape[1]
    if last <= first:
        rows.zero_()
        return
    keys = magnitude_keys(rows)
    borders = [width - last, width - first]  # ascending positions: kept are those from the first to before the second
    inner = [border for border in borders if 0 < border < width]
    parted = np.partition(keys, inner, axis=1) if inner else keys
    kept = np.ones(keys.shape, bool)
    if borders[0] > 0:
        kept &= keys >= parted[:, borders[0], None]
    if borders[1] < width:
        kept &= keys < parted[:, borders[1], None]
    rows.mul_(torch.from_numpy(kept).to(rows.device))


def magnitude_keys(rows: torch.Tensor) -> np.ndarray:
    """Return uint64 [R, W] that orders a row's entries by magnitude, of equal ones the first column highest.

    Magnitude and column are one key, so that no two entries of a row are equal.
    """
    bits = rows.abs().cpu().numpy().view(np.uint32).astype(np.uint64)
    columns = np.arange(rows.shape[1] - 1, -1, -1, dtype=np.uint64)
    return (bits << np.uint64(32)) | columns
