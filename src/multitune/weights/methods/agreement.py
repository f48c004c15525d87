"""What several models agree on: SCE, TALL masks and Consensus.

Legend: T models, n entries of a piece. base [n]; deltas [T, n], overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
import torch

from multitune.weights.methods.layer import Layer
from multitune.weights.methods.sums import weighted_sum
from multitune.weights.methods.trimmed import TINY
from multitune.weights.selection import NOTHING, Cut, Rows, cuts, keep_above_
from multitune.weights.streaming import Stream, partial_sums


@dataclass(frozen=True, slots=True)
class Fusion:
    """What SCE must know of a tensor: which entries vary most, and the models' coefficients (they sum to 1)."""

    cut: Cut | None
    coefficients: list[float]


def sce(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + what Select, Calculate, Erase leave (FuseChat, arXiv 2408.07990).

    Select the fraction ``select_topk`` of the entries that vary most between the models (of those that vary at all);
    calculate coefficients c_t = sum tau_t^2 / sum_s sum tau_s^2 over the tensor; erase what has not the sign of the
    sum: tau = sum_t c_t e_t tau_t / sum_t c_t e_t.
    """
    fusion: Fusion = layer.statistics
    _select(deltas, fusion.cut, layer.start)
    sign = deltas.sum(0).add_(TINY).sign_()
    agreeing = deltas.mul_(sign).clamp_(min=0)
    voters = weighted_sum(agreeing.sign(), fusion.coefficients).clamp_(min=1e-6)
    return base + weighted_sum(agreeing, fusion.coefficients).mul_(sign).div_(voters)


def find_fusion(stream: Stream, parameters: Mapping[str, Any], layer: Layer) -> Fusion:
    """Find SCE's selection and coefficients."""
    share = parameters["select_topk"]
    cut = None
    if share < 1:
        spread = Rows(stream.numel, stream.starts, lambda start: _variance(stream.read(start).deltas)[None])
        varying = sum(int(np.count_nonzero(spread.read(start).cpu().numpy())) for start in stream.starts)
        wanted = int(varying * share)
        cut = cuts([spread], [[wanted]])[0][0][0] if wanted else NOTHING
    squares: list[list[float]] = [[] for _ in stream.models]
    for chunk in stream:
        _select(chunk.deltas, cut, chunk.start)
        for sums, row in zip(squares, chunk.deltas, strict=True):
            sums += partial_sums(row * row, stream.unit)
    totals = [fsum(sums) for sums in squares]
    whole = sum(totals)
    # a tensor that no model has changed: all count alike
    negligible = whole < 1e-6 * max(stream.numel, 1) if layer.compat == "mergekit" else whole == 0
    return Fusion(cut, [1 / len(totals)] * len(totals) if negligible else [total / whole for total in totals])


def _variance(deltas: torch.Tensor) -> torch.Tensor:
    """Return the variance over models, [n]; row by row, as torch's own is many times slower over a short dimension."""
    mean = deltas.mean(0)
    squares = torch.zeros_like(mean)
    for row in deltas:
        difference = row - mean
        squares.addcmul_(difference, difference)
    return squares.div_(len(deltas))


def _select(deltas: torch.Tensor, cut: Cut | None, start: int) -> None:
    """Zero, in place, the entries of all models that vary too little."""
    if cut is not None:
        deltas.mul_(keep_above_(_variance(deltas), cut, start).sign_())


def tall_mask(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return one task's part of the sum: base + m_t tau, tau = lambda sum_s w_s tau_s (TALL masks, arXiv 2405.07813).

    m_t = 1 where |theta_0 - theta_t| > threshold |theta_0 + tau - theta_t|.
    """
    task = min(int(parameters["task"]), len(deltas) - 1)
    own = deltas[task].clone()
    merged = weighted_sum(deltas, parameters["weight"]).mul_(parameters["lambda"])
    return base + _tall(own, merged, parameters["threshold"]).mul_(merged)


def consensus(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + tau where at least ``agreement`` models' TALL masks are 1 (Consensus, arXiv 2405.07813).

    tau = lambda sum_t w_t tau_t; entries that fewer models need are dropped: they serve one task or none.
    """
    merged = weighted_sum(deltas.clone(), parameters["weight"]).mul_(parameters["lambda"])
    votes = torch.zeros_like(merged)
    for delta, threshold in zip(deltas, parameters["threshold"], strict=True):
        votes.add_(_tall(delta, merged, threshold))
    enough = votes.sub_(parameters["agreement"] - 0.5).sign_().clamp_(min=0)
    return base + merged.mul_(enough)


def _tall(delta: torch.Tensor, merged: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return float32 1 where a task's own change outweighs ``threshold`` times what merging did to it, else 0."""
    rest = (merged - delta).abs_().mul_(threshold)
    return delta.abs().sub_(rest).sign_().clamp_(min=0)
