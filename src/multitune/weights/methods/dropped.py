"""Task vectors thinned at random: DARE and DELLA.

Legend: T models, n entries of a piece. base [n]; deltas [T, n], overwritten.

A random number depends on the seed, the model's place among the models, the tensor's name and the entry's index alone:
Philox is a counter-based generator, and the index is its counter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from multitune.weights.methods.layer import Layer
from multitune.weights.methods.masks import Survival, l1_scales, magnitude_keys, scaled
from multitune.weights.methods.sums import factors, weighted_sum
from multitune.weights.methods.trimmed import elected
from multitune.weights.streaming import Stream

PER_COUNTER = 8
"""Numbers of 32 bits that Philox gives per counter value."""


def dare_linear(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + lambda sum_t w_t m_t tau_t / p_t, m_t 1 with probability p_t, the density (arXiv 2311.03099).

    mergekit scales by sum |tau_t| / sum |m_t tau_t| in place of 1 / p_t.
    """
    kept = keep_random(deltas, parameters, layer)
    return base + weighted_sum(kept, factors(parameters)).mul_(parameters["lambda"])


def dare_ties(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + lambda times DARE's survivors that have the elected sign, summed (``normalize``: their mean)."""
    kept = keep_random(deltas, parameters, layer)
    return base + elected(kept, parameters, layer.compat).mul_(parameters["lambda"])


def della_linear(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + lambda sum_t w_t m_t tau_t / p_t, where larger entries of a row survive more often
    (DELLA, arXiv 2406.11617).

    p = density - epsilon + 2 epsilon (rank - 1) / (W - 1), rank 1 being the smallest of W entries.
    """
    kept = keep_by_rank(deltas, parameters, layer)
    return base + weighted_sum(kept, factors(parameters)).mul_(parameters["lambda"])


def della(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + lambda times the mean of DELLA's survivors that have the elected sign."""
    kept = keep_by_rank(deltas, parameters, layer)
    return base + elected(kept, parameters, layer.compat).mul_(parameters["lambda"])


def keep_random(deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Keep each entry with the probability ``density``."""
    for task, (delta, density) in enumerate(zip(deltas, parameters["density"], strict=True)):
        if density >= 1:
            continue
        if density <= 0:
            delta.zero_()
            continue
        random = uniform(layer, task, delta.numel()).to(delta.device)
        delta.mul_(_indicator(random, density))
        if parameters["rescale"] and layer.compat == "authors":
            delta.div_(density)
    return scaled(deltas, layer.statistics) if layer.statistics else deltas


def keep_by_rank(deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Keep each entry with a probability that grows with its rank in its row."""
    for task, (delta, density, epsilon) in enumerate(
        zip(deltas, parameters["density"], parameters["epsilon"], strict=True)
    ):
        if density >= 1:
            continue
        if density <= 0:
            delta.zero_()
            continue
        rows = delta.view(-1, layer.width)
        chance = density + epsilon * (2 * _relative_ranks(rows) - 1)
        random = uniform(layer, task, delta.numel()).to(delta.device)
        delta.mul_(_indicator(random, chance.reshape(-1)))
        if parameters["rescale"] and layer.compat == "authors":
            rows.div_(chance)
    return scaled(deltas, layer.statistics) if layer.statistics else deltas


def _indicator(random: torch.Tensor, chance: torch.Tensor | float) -> torch.Tensor:
    """Return float32 1 where a number from [-2^31, 2^31) is below chance, which is counted from 0 to 1; else 0.

    By signs, and not by a comparison: booleans are slow.
    """
    return random.sub_(chance * 2.0**32 - 2.0**31).neg_().sign_().clamp_(min=0)


def uniform(layer: Layer, task: int, length: int) -> torch.Tensor:
    """Return the random numbers of a piece: float32 [length], whole numbers from -2^31 to 2^31."""
    told = f"{layer.seed}/{task}/{layer.name}".encode()
    key = int.from_bytes(hashlib.blake2b(told, digest_size=16).digest(), "little")
    first, skipped = divmod(layer.start, PER_COUNTER)
    words = np.random.Philox(key=key, counter=first).random_raw((skipped + length + 1) // 2)
    return torch.from_numpy(words.view(np.int32)[skipped : skipped + length]).float()


def _relative_ranks(rows: torch.Tensor) -> torch.Tensor:
    """Return (rank - 1) / (W - 1) of every entry's magnitude in its row, from 0 to 1; 1/2 in a row of one.

    Of equal magnitudes the first column ranks highest.
    """
    width = rows.shape[1]
    if width == 1:
        return torch.full_like(rows, 0.5)
    order = np.sort(magnitude_keys(rows), axis=1)
    columns = width - 1 - (order & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ranks = np.empty(columns.shape, np.float32)
    np.put_along_axis(ranks, columns, np.arange(width, dtype=np.float32)[None, :], axis=1)
    return torch.from_numpy(ranks).to(rows.device).div_(width - 1)


def find_scales(stream: Stream, parameters: Mapping[str, Any], layer: Layer) -> Survival | None:
    """Find mergekit's factors for DARE; the authors' need nothing of the whole tensor."""
    return _scales(stream, keep_random, parameters, layer)


def find_rank_scales(stream: Stream, parameters: Mapping[str, Any], layer: Layer) -> Survival | None:
    """Find mergekit's factors for DELLA; the authors' need nothing of the whole tensor."""
    return _scales(stream, keep_by_rank, parameters, layer)


def _scales(stream: Stream, mask: Any, parameters: Mapping[str, Any], layer: Layer) -> Survival | None:
    if not parameters["rescale"] or layer.compat == "authors":
        return None
    return Survival([], [], l1_scales(stream, mask, parameters, layer))
