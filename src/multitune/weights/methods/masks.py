"""Which entries of a task vector survive: the largest, a band of magnitudes.

A mask function zeroes the rest of deltas [T, n] in place. What it needs of the whole tensor is found before, by the
statistics function beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from multitune.weights.methods.layer import Layer
from multitune.weights.selection import Cut, cuts, keep_above_, keep_band_
from multitune.weights.streaming import Stream


@dataclass(frozen=True, slots=True)
class Bands:
    """The surviving entries of each model lie above its ``lower`` cut and not above its ``upper`` one."""

    upper: list[Cut]
    lower: list[Cut]


def top_ranks(parameters: Mapping[str, Any], numel: int) -> list[tuple[int, int]]:
    """Return the ranks (0, k) that each model keeps: k = int(numel density), at least 1 of a density above 0."""
    return [(0, max(int(numel * density), density > 0)) for density in parameters["density"]]


def band_ranks(parameters: Mapping[str, Any], numel: int, compat: str) -> list[tuple[int, int]]:
    """Return the ranks (r, r + k) between which entries are kept: r = int(numel drop_top), k = int(numel keep).

    ``remove_first=0`` keeps ranks 1..k, then drops 1..r of them. mergekit keeps k entries whatever happens: it drops
    fewer at the top where they would not suffice, and none at keep = 1.
    """
    ranks = []
    for keep, drop_top in zip(parameters["keep"], parameters["drop_top"], strict=True):
        dropped, kept = int(numel * drop_top), int(numel * keep)
        if compat == "mergekit":
            dropped = min(dropped, numel - kept)
        last = dropped + kept if parameters["remove_first"] else max(kept, dropped)
        ranks.append((dropped, min(last, numel)))
    return ranks


def find_top(stream: Stream, parameters: Mapping[str, Any], layer: Layer) -> Bands:
    """Find the k-th largest magnitude of each model's delta."""
    return _bands(stream, top_ranks(parameters, stream.numel))


def find_band(stream: Stream, parameters: Mapping[str, Any], layer: Layer) -> Bands | None:
    """Find both borders of each model's band; rows are ranked in the piece itself."""
    if parameters["granularity"] == "row" or not layer.shape:
        return None
    return _bands(stream, band_ranks(parameters, stream.numel, layer.compat))


def _bands(stream: Stream, ranks: list[tuple[int, int]]) -> Bands:
    found = cuts([stream.rows], ranks)[0]
    return Bands([upper for upper, _ in found], [lower for _, lower in found])


def keep_top(deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Keep the k largest magnitudes of each model."""
    bands: Bands = layer.statistics
    for delta, lower in zip(deltas, bands.lower, strict=True):
        keep_above_(delta, lower, layer.start)
    return deltas


def keep_band(deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Keep the band of magnitudes of each model; a tensor without dimensions passes whole."""
    if not layer.shape:
        return deltas
    if layer.statistics is None:
        ranks = band_ranks(parameters, layer.width, layer.compat)
        for delta, (upper, lower) in zip(deltas, ranks, strict=True):
            _keep_ranks_of_rows(delta.view(-1, layer.width), upper, lower)
        return deltas
    bands: Bands = layer.statistics
    for delta, upper_cut, lower_cut in zip(deltas, bands.upper, bands.lower, strict=True):
        keep_band_(delta, upper_cut, lower_cut, layer.start)
    return deltas


def _keep_ranks_of_rows(rows: torch.Tensor, first: int, last: int) -> None:
    """Zero, in place, all but ranks first + 1 .. last of every row [R, W].

    Magnitude and column are one 64-bit key, so that no two entries of a row are equal.
    """
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
    """Return uint64 [R, W] that orders a row's entries by magnitude, of equal ones the first column highest."""
    bits = rows.abs().cpu().numpy().view(np.uint32).astype(np.uint64)
    columns = np.arange(rows.shape[1] - 1, -1, -1, dtype=np.uint64)
    return (bits << np.uint64(32)) | columns
