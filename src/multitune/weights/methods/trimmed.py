"""Task vectors thinned by magnitude, then summed or elected: TIES and Breadcrumbs.

Legend: T models, n entries of a piece. base [n]; deltas [T, n], overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from multitune.weights.methods.layer import Layer
from multitune.weights.methods.masks import keep_band, keep_top
from multitune.weights.methods.sums import factors, weighted_sum

TINY = torch.finfo(torch.float32).tiny
"""Added to a sum, it decides the sign of exactly zero and changes nothing else that a weight could be."""


def ties(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + lambda times the mean of what survives trimming and agrees in sign (TIES, arXiv 2306.01708).

    tau'_t = tau_t where its magnitude is among the largest; gamma = sgn(sum_t tau'_t);
    tau = sum_{t: sgn tau'_t = gamma} w_t tau'_t / sum_{t: sgn tau'_t = gamma} w_t. Where the sum is zero, gamma is the
    sign that most entries have, as in the authors' code.
    """
    kept = keep_top(deltas, parameters, layer)
    merged = elected(kept, parameters, layer.compat, layer.statistics.majority)
    return base + merged.mul_(parameters["lambda"])


def breadcrumbs(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + lambda sum_t w_t m_t tau_t, m_t the middle band of magnitudes (Breadcrumbs, arXiv 2312.06795)."""
    kept = keep_band(deltas, parameters, layer)
    return base + weighted_sum(kept, factors(parameters)).mul_(parameters["lambda"])


def breadcrumbs_ties(
    base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer
) -> torch.Tensor:
    """Return base + lambda times the sum of the bands' entries that have the elected sign (a variant of mergekit's)."""
    kept = keep_band(deltas, parameters, layer)
    merged = elected(kept, parameters, layer.compat)
    return base + merged.mul_(parameters["lambda"])


def elected(deltas: torch.Tensor, parameters: Mapping[str, Any], compat: str, majority: float = 1.0) -> torch.Tensor:
    """Return what the models that have the elected sign say, [n]; overwrites ``deltas``.

    The sign of an entry is that of the models' sum, and of a sum of exactly zero ``majority`` (1 or -1). The authors
    elect by unweighted sums, mergekit by weighted ones. ``aggregate``: the weighted mean of the agreeing entries that
    are not zero (``normalize`` 0: their weighted sum), their weighted sum, or the largest.
    """
    weights: Sequence[float] = parameters["weight"]
    if compat == "mergekit":
        deltas.mul_(_column(weights, deltas))
    sign = deltas.sum(0).add_(TINY * majority).sign_()
    agreeing = deltas.mul_(sign).clamp_(min=0)  # magnitudes with the elected sign, zero elsewhere
    aggregate = parameters.get("aggregate", "mean")
    if aggregate == "max":
        return agreeing.amax(0).mul_(sign)
    is_mean = aggregate == "mean" and parameters["normalize"]
    voters = weighted_sum(agreeing.sign(), weights) if is_mean else None
    merged = weighted_sum(agreeing, [1.0] * len(weights) if compat == "mergekit" else weights).mul_(sign)
    if voters is not None:
        if min(weights) > 0:
            voters.clamp_(min=min(weights) / 2)  # no voters, nothing to divide
        else:
            voters[voters == 0] = 1
        merged.div_(voters)
    return merged


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
