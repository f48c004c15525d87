"""Divergences at all points of a grid from powers: exp(alpha d) at alpha = low + step i is exp(low d) exp(step d)^i.

The shifts d are centred, E_P[d] = 0: nothing is lost to large constants, and sum P exp(alpha d) is at least 1. Along
one expert, with i = m k + j, the powers k of exp(step d)^m, times P, meet the powers j in one matrix product: one
exponential per word and about 3 sqrt(n) products stand for n exponentials.

Shape legend: ``B`` rows, ``T`` experts, ``N`` candidates, ``V`` words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

LARGEST_EXPONENT = 80.0
"""Of exp in float32: a grid along larger shifts is searched candidate by candidate, each scaled by its largest term."""

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers held at once: 4 MiB stays near a core (measured best of 0.25 to 8 MiB), 256 MiB keeps a GPU busy."""

LEAST_WORDS = 2048
"""Fewer words at a time cost more in calls than they save."""

Points = tuple[tuple[float, ...], ...]  # the grid of every expert


def fit_powers(delta_BTV: Tensor, bounds: Sequence[tuple[float, float]]) -> bool:
    """Whether exp(alpha d) of centred shifts is a float32 number at all alpha between bounds that are not below 0.

    Args:
        delta_BTV: the shifts.
        bounds: lowest and highest alpha of each expert.
    """
    highest = max(high for _, high in bounds)
    return min(low for low, _ in bounds) >= 0 and bool(delta_BTV.amax() * highest <= LARGEST_EXPONENT)


def along_each(p_BV: Tensor, delta_BTV: Tensor, low_BT: Tensor, step_BT: Tensor, count: int) -> Tensor:
    """Return the divergences along each expert alone at low, low + step, ..., [B, T, count, 2].

    Args:
        p_BV: probabilities of the large model.
        delta_BTV: centred shifts that `fit_powers`.
        low_BT, step_BT: of each row's and expert's grid.
        count: of its points.
    """
    experts = delta_BTV.shape[1]
    width = math.isqrt(count - 1) + 1
    jumps = -(-count // width)
    starts_at_zero = not low_BT.any()

    def sums(rows: slice, words: slice, room: Tensor) -> Tensor:
        delta_BTv = delta_BTV[rows, :, words]
        shape = delta_BTv.shape
        both_SBTv = room[: (2 * width + jumps + 1) * delta_BTv.numel()].view(-1, *shape)
        power_mBTv, moved_mBTv, left_kBTv, (factor_BTv,) = both_SBTv.split([width, width, jumps, 1])
        torch.mul(step_BT[rows, :, None], delta_BTv, out=factor_BTv).exp_()
        left_kBTv[0] = p_BV[rows, None, words]
        if not starts_at_zero:
            left_kBTv[0] *= (low_BT[rows, :, None] * delta_BTv).exp_()
        power_mBTv[0] = 1.0
        _multiply_on(power_mBTv, factor_BTv)
        if jumps > 1:
            factor_BTv *= power_mBTv[-1]  # factor^width
            _multiply_on(left_kBTv, factor_BTv)
        torch.mul(power_mBTv, delta_BTv, out=moved_mBTv)
        right_BTmv = both_SBTv[: 2 * width].permute(1, 2, 0, 3)
        return left_kBTv.permute(1, 2, 0, 3) @ right_BTmv.transpose(-1, -2)

    sum_BTkm = _piecewise(sums, p_BV, experts * (2 * width + jumps + 1))
    total_BTn, moment_BTn = (part.flatten(2)[..., :count] for part in sum_BTkm.unflatten(-1, (2, width)).unbind(-2))
    alpha_BTn = low_BT[..., None] + step_BT[..., None] * torch.arange(count, device=p_BV.device)
    log_sum_BTn = total_BTn.log()
    return torch.stack([alpha_BTn * moment_BTn / total_BTn - log_sum_BTn, log_sum_BTn], dim=-1)


def joint(p_BV: Tensor, delta_BTV: Tensor, alpha_NT: Tensor, points: Points) -> Tensor:
    """Return the divergences of all pairs of two experts' points (or of one's), [B, N, 2].

    Args:
        p_BV: probabilities of the large model.
        delta_BTV: centred shifts that `fit_powers` with twice the bounds.
        alpha_NT: the pairs, those of the first expert's lowest point first.
        points: evenly spaced, of each expert.
    """
    experts = len(points)
    first, second = points if experts == 2 else (*points, (0.0,))

    def sums(rows: slice, words: slice, room: Tensor) -> Tensor:
        delta_TBv = delta_BTV[rows, :, words].transpose(0, 1)
        size = (len(first) + (1 + experts) * len(second)) * delta_TBv[0].numel()
        both_SBv = room[:size].view(-1, *delta_TBv.shape[1:])
        left_nBv, power_mBv, moved_SBv = both_SBv.split([len(first), len(second), experts * len(second)])
        left_nBv[0] = p_BV[rows, words]
        _fill_with_grid(left_nBv, delta_TBv[0], first)
        power_mBv[0] = 1.0
        _fill_with_grid(power_mBv, delta_TBv[-1], second)
        torch.mul(power_mBv, delta_TBv[:, None], out=moved_SBv.view(experts, -1, *delta_TBv.shape[1:]))
        return left_nBv.transpose(0, 1) @ both_SBv[len(first) :].permute(1, 2, 0)

    sum_BnM = _piecewise(sums, p_BV, len(first) + (1 + experts) * len(second))
    total_BN, *moments = (part.flatten(1) for part in sum_BnM.chunk(1 + experts, dim=2))
    log_sum_BN = total_BN.log()
    shift_BN = (alpha_NT * torch.stack(moments, dim=-1)).sum(-1) / total_BN
    return torch.stack([shift_BN - log_sum_BN, log_sum_BN], dim=-1)


def _fill_with_grid(out_nBv: Tensor, delta_Bv: Tensor, points: Sequence[float]) -> None:
    """Multiply the first vector on to exp(alpha d) at evenly spaced alpha."""
    if points[0]:
        out_nBv[0] *= (points[0] * delta_Bv).exp_()
    if len(points) > 1:
        _multiply_on(out_nBv, ((points[1] - points[0]) * delta_Bv).exp_())


def _multiply_on(out: Tensor, factor: Tensor) -> None:
    """Fill out[i] with out[0] * factor^i."""
    vectors = out.unbind()
    for before, after in pairwise(vectors):
        torch.mul(before, factor, out=after)


def _piecewise(sums: Callable[[slice, slice, Tensor], Tensor], p_BV: Tensor, vectors: int) -> Tensor:
    """Return sums over the words, taken for some rows and some words at a time, which bounds the memory.

    Args:
        sums: rows, words and room for their vectors -> their sums; those of different words add up.
        p_BV: tells the sizes.
        vectors: held at once by ``sums`` for each row.
    """
    rows, words = p_BV.shape
    elements = CHUNK_ELEMENTS["cuda" if p_BV.is_cuda else "cpu"] // vectors
    some_rows = max(1, elements // words)
    some_words = max(LEAST_WORDS, elements // some_rows)
    room = p_BV.new_empty(min(some_rows, rows) * min(some_words, words) * vectors)
    found = []
    for row in range(0, rows, some_rows):
        part = [sums(slice(row, row + some_rows), slice(v, v + some_words), room) for v in range(0, words, some_words)]
        found.append(torch.stack(part).sum(0) if len(part) > 1 else part[0])
    return torch.cat(found)
