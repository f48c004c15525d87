"""The kernel of dynamic logit fusion (arXiv:2406.15480): how far to go along the experts' shifts, token by token.

    Ptilde(a) = softmax(M^L + sum_t a_t (M_t - M^S))
    L(a) = sum_t [ (KL(Ptilde||P) - KL(Q_t||Q))^2 + (KL(P||Ptilde) - KL(Q||Q_t))^2 ]

with P, Q, Q_t the distributions of the large model, the small base and the experts. Along v = sum_t a_t d_t, where
d_t = M_t - M^S, the two divergences come from one pass over the words,

    A(a) = log sum P exp(v),    KL(Ptilde||P) = E_Ptilde[v] - A,    KL(P||Ptilde) = A - E_P[v],

and of the targets only the means over experts matter: sum_t (x - x_t)^2 = T (x - mean x)^2 + a constant.

Shape legend: ``B`` rows, ``T`` experts, ``N`` candidates, ``V`` words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from multitune.decoding.fusion_config import FusionConfig

FORBIDDEN = -1e4
"""Stands for a logit of minus infinity inside the divergences: weightless, and finite in every product."""

LARGEST_EXPONENT = 80.0
"""Of exp in float32: a grid along larger shifts is searched candidate by candidate, each scaled by its largest term."""

ROUNDING = 1e-6
"""Losses that differ relatively by less are equal, and so are divergences that differ absolutely by less."""

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers held at once: 4 MiB stays near a core (measured best of 0.25 to 8 MiB), 256 MiB keeps a GPU busy."""

LEAST_WORDS = 2048
"""Fewer words at a time cost more in calls than they save."""

SOLVER_POINTS, NARROWINGS = 21, 4
"""Points in a row, and rows, of the search without a grid: the last one is at most 0.0002 wide where ranges are 2."""

Points = tuple[tuple[float, ...], ...]  # the grid of every expert


@dataclass(frozen=True)
class Fused:
    """Fused logits of some rows and how they came about.

    Attributes:
        logits_BV: float32; softmax of them is Ptilde.
        alpha_BT: coefficient of every expert, at most one non-zero unless fixed or searched jointly.
        loss_B: L(alpha) in nats squared; None where the coefficients are fixed.
    """

    logits_BV: Tensor
    alpha_BT: Tensor
    loss_B: Tensor | None


def fuse(large_BV: Tensor, small_BV: Tensor, expert_BTV: Tensor, config: FusionConfig) -> Fused:
    """Return the large model's logits, shifted along the experts as far as ``config`` says or the search finds.

    Of candidates with equal loss the first wins: experts in their order, alpha ascending.

    Args:
        large_BV, small_BV, expert_BTV: logits over one vocabulary, of any floating dtype.
        config: checked by ``check_fusion``.
    """
    large_BV, small_BV, expert_BTV = large_BV.float(), small_BV.float(), expert_BTV.float()
    experts = expert_BTV.shape[1]
    fixed = config.fixed(experts)
    if fixed is not None:
        alpha_BT = large_BV.new_tensor(fixed).expand(len(large_BV), experts)
        return Fused(shifted(large_BV, small_BV, expert_BTV, alpha_BT), alpha_BT, None)
    log_p_BV = large_BV.log_softmax(-1)
    log_q_BV = small_BV.clamp(min=FORBIDDEN).log_softmax(-1)
    log_qt_BTV = expert_BTV.clamp(min=FORBIDDEN).log_softmax(-1)
    delta_BTV = log_qt_BTV - log_q_BV[:, None]
    away_BT, back_BT = (log_qt_BTV.exp() * delta_BTV).sum(-1), -(delta_BTV @ log_q_BV.exp()[..., None])[..., 0]
    target_BT2 = torch.stack([away_BT, back_BT], dim=-1)
    search = _solved if config.search == "bisection" else _from_grid
    alpha_BT, loss_B = search(log_p_BV, delta_BTV, target_BT2, config)
    return Fused(shifted(large_BV, small_BV, expert_BTV, alpha_BT), alpha_BT, loss_B)


def shifted(large_BV: Tensor, small_BV: Tensor, expert_BTV: Tensor, alpha_BT: Tensor) -> Tensor:
    """Return M^L + sum_t alpha_t (M_t - M^S), [B, V]; where alpha is 0, M^L bit for bit."""
    weighed_BTV = alpha_BT[..., None] * (expert_BTV - small_BV[:, None])
    # Words that both models forbid, and those that one forbids where alpha is 0, are no number so far.
    return large_BV + weighed_BTV.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf).sum(1)


def divergences(log_p_BV: Tensor, delta_BTV: Tensor, alpha_BNT: Tensor) -> Tensor:
    """Return KL(Ptilde||P) and KL(P||Ptilde) in nats of every candidate, [B, N, 2].

    Args:
        log_p_BV: log-probabilities of the large model.
        delta_BTV: the experts' shifts, up to a constant per row.
        alpha_BNT: the candidates; the first axis may be 1 where all rows share them.
    """
    delta_BTV = _centred(log_p_BV, delta_BTV)
    rows, words = log_p_BV.shape
    alpha_BNT = alpha_BNT.expand(rows, -1, -1)
    at_once = max(1, CHUNK_ELEMENTS["cuda" if log_p_BV.is_cuda else "cpu"] // words)
    blocks = zip(*(tensor.split(at_once) for tensor in (log_p_BV, delta_BTV, alpha_BNT)), strict=True)
    each = max(1, at_once // rows)
    return torch.cat(
        [
            torch.cat([_divergences(log_p, delta, some) for some in alpha.split(each, dim=1)], dim=1)
            for log_p, delta, alpha in blocks
        ]
    )


def _centred(log_p_BV: Tensor, delta_BTV: Tensor) -> Tensor:
    """Return the shifts with E_P[d] = 0: nothing is lost to large constants, and sum P exp(v) is at least 1."""
    return delta_BTV - delta_BTV @ log_p_BV.exp()[..., None]


def _divergences(log_p_BV: Tensor, delta_BTV: Tensor, alpha_BNT: Tensor) -> Tensor:
    """Return the divergences of candidates that fit into memory at once; the shifts are centred."""
    weight_BNV = torch.baddbmm(log_p_BV[:, None], alpha_BNT, delta_BTV)  # log P + v
    highest_BN1 = weight_BNV.amax(-1, keepdim=True)
    weight_BNV.sub_(highest_BN1).exp_()
    total_BN = weight_BNV.sum(-1)
    log_sum_BN = highest_BN1[..., 0] + total_BN.log()
    expected_BNT = torch.bmm(weight_BNV, delta_BTV.transpose(1, 2)) / total_BN[..., None]
    return torch.stack([(alpha_BNT * expected_BNT).sum(-1) - log_sum_BN, log_sum_BN], dim=-1)


def losses(divergence_BN2: Tensor, target_BT2: Tensor) -> Tensor:
    """Return L of every candidate, [B, N], from its divergences and those of the experts from their base."""
    experts = target_BT2.shape[1]
    mean_B12 = target_BT2.mean(1, keepdim=True)
    spread_B1 = ((target_BT2 - mean_B12) ** 2).sum((1, 2))[:, None]
    return experts * ((divergence_BN2 - mean_B12) ** 2).sum(-1) + spread_B1


@cache
def candidates(config: FusionConfig, experts: int) -> tuple[tuple[float, ...], ...]:
    """Return the grid's coefficients, one per expert each, in the order in which ties are decided."""
    points = grid_points(config, experts)
    if config.search == "joint":
        return tuple(product(*points))
    return tuple(
        tuple(alpha if other == t else 0.0 for other in range(experts)) for t in range(experts) for alpha in points[t]
    )


@cache
def grid_points(config: FusionConfig, experts: int) -> Points:
    """Return low, low + step, ... up to high of every expert; rounded, so that the tenth tenth is 1."""
    return tuple(
        tuple(round(low + config.step * i, 9) for i in range(int((high - low) / config.step + 1e-9) + 1))
        for low, high in config.ranges_of(experts)
    )


def _from_grid(log_p_BV: Tensor, delta_BTV: Tensor, target_BT2: Tensor, config: FusionConfig) -> tuple[Tensor, Tensor]:
    """Return the first candidate of least loss, alpha [B, T], and its loss [B]."""
    experts = delta_BTV.shape[1]
    alpha_NT, points = log_p_BV.new_tensor(candidates(config, experts)), grid_points(config, experts)
    delta_BTV = _centred(log_p_BV, delta_BTV)
    if not _fits_powers(delta_BTV, [bound for one in config.ranges_of(experts) for bound in one]):
        divergence_BN2 = divergences(log_p_BV, delta_BTV, alpha_NT[None])
    elif config.search == "joint":
        divergence_BN2 = _joint_divergences(log_p_BV, delta_BTV, alpha_NT, points)
    else:
        low_BT = log_p_BV.new_tensor([one[0] for one in points]).expand(delta_BTV.shape[:2])
        step_BT = torch.full_like(low_BT, config.step)
        along_BTn2 = _along_each(log_p_BV, delta_BTV, low_BT, step_BT, max(map(len, points)))
        divergence_BN2 = torch.cat([along_BTn2[:, t, : len(one)] for t, one in enumerate(points)], dim=1)
    loss_BN = losses(divergence_BN2, target_BT2).nan_to_num(nan=torch.inf)
    best_B = _first_least(loss_BN)
    return alpha_NT[best_B], loss_BN.gather(1, best_B[:, None])[:, 0]


def _solved(log_p_BV: Tensor, delta_BTV: Tensor, target_BT2: Tensor, config: FusionConfig) -> tuple[Tensor, Tensor]:
    """Return the best alpha of one active expert without a grid, [B, T], and its loss [B].

    Both divergences grow with alpha, so the minimum along an expert lies between the alpha at which the first reaches
    its mean target and the one at which the second does. A first row of points finds these; rows ever finer, between
    the neighbours of the best point, follow.
    """
    delta_BTV = _centred(log_p_BV, delta_BTV)
    bounds = config.ranges_of(delta_BTV.shape[1])
    fits = _fits_powers(delta_BTV, [bound for one in bounds for bound in one])
    low_BT, high_BT = log_p_BV.new_tensor(bounds).expand(*delta_BTV.shape[:2], 2).unbind(-1)
    mean_B112 = target_BT2.mean(1)[:, None, None]
    for narrowing in range(NARROWINGS):
        step_BT = (high_BT - low_BT) / (SOLVER_POINTS - 1)
        alpha_BTn = low_BT[..., None] + step_BT[..., None] * torch.arange(SOLVER_POINTS, device=log_p_BV.device)
        if fits:
            divergence_BTn2 = _along_each(log_p_BV, delta_BTV, low_BT, step_BT, SOLVER_POINTS)
        else:
            divergence_BN2 = divergences(log_p_BV, delta_BTV, _one_active(alpha_BTn))
            divergence_BTn2 = divergence_BN2.unflatten(1, alpha_BTn.shape[1:])
        loss_BTn = losses(divergence_BTn2.flatten(1, 2), target_BT2).view_as(alpha_BTn)
        best_BT = _first_least(loss_BTn)
        reached_BT2 = (divergence_BTn2 < mean_B112 - ROUNDING).sum(2)  # points below the target come first
        first_BT, last_BT = (
            (reached_BT2.amin(-1) - 1, reached_BT2.amax(-1)) if not narrowing else (best_BT - 1, best_BT + 1)
        )
        low_BT, high_BT = (
            alpha_BTn.gather(-1, place_BT.clamp(0, SOLVER_POINTS - 1)[..., None])[..., 0]
            for place_BT in (first_BT, last_BT)
        )
    alpha_BT, loss_BT = (one.gather(-1, best_BT[..., None])[..., 0] for one in (alpha_BTn, loss_BTn))
    expert_B1 = _first_least(loss_BT)[:, None]
    alone_BT = torch.zeros_like(alpha_BT).scatter(1, expert_B1, alpha_BT.gather(1, expert_B1))
    return alone_BT, loss_BT.gather(1, expert_B1)[:, 0]


def _first_least(loss: Tensor) -> Tensor:
    """Return the place of the first least loss of the last axis; what rounding tells apart is equal."""
    least = loss.amin(-1, keepdim=True)
    return (loss <= least * (1 + ROUNDING) + ROUNDING**2).to(torch.uint8).argmax(-1)


def _fits_powers(delta_BTV: Tensor, bounds: list[float]) -> bool:
    """Whether exp(alpha d) of centred shifts is a float32 number at all alpha between 0 or more and the bounds."""
    return min(bounds) >= 0 and bool(delta_BTV.amax() * max(bounds) <= LARGEST_EXPONENT)


def _along_each(log_p_BV: Tensor, delta_BTV: Tensor, low_BT: Tensor, step_BT: Tensor, count: int) -> Tensor:
    """Return the divergences along each expert alone at low, low + step, ..., [B, T, count, 2]; shifts are centred.

    exp(alpha d) at alpha = low + step (m i + j) is exp((low + step m i) d) exp(step j d): about 2 sqrt(n) vectors, and
    one matrix product that sums all their pairs, stand for n exponentials.
    """
    width = math.isqrt(count - 1) + 1
    near_m = torch.arange(width, device=log_p_BV.device)
    near_BTm1 = (step_BT[..., None] * near_m)[..., None]
    far_m = width * torch.arange(-(-count // width), device=log_p_BV.device)
    far_BTm1 = (low_BT[..., None] + step_BT[..., None] * far_m)[..., None]

    def sums(rows: slice, words: slice) -> Tensor:
        delta_BT1V = delta_BTV[rows, :, None, words]
        right_BTmV = (near_BTm1[rows] * delta_BT1V).exp_()
        left_BTmV = (log_p_BV[rows, None, None, words] + far_BTm1[rows] * delta_BT1V).exp_()
        return left_BTmV @ torch.cat([right_BTmV, right_BTmV * delta_BT1V], dim=2).transpose(-1, -2)

    sum_BTmM = _piecewise(sums, log_p_BV, 5 * delta_BTV.shape[1] * (width + 1))
    total_BTn, moment_BTn = (
        sum_BTmM.unflatten(-1, (2, width))[..., part, :].flatten(2)[..., :count] for part in (0, 1)
    )
    alpha_BTn = low_BT[..., None] + step_BT[..., None] * torch.arange(count, device=log_p_BV.device)
    log_sum_BTn = total_BTn.log()
    return torch.stack([alpha_BTn * moment_BTn / total_BTn - log_sum_BTn, log_sum_BTn], dim=-1)


def _joint_divergences(log_p_BV: Tensor, delta_BTV: Tensor, alpha_NT: Tensor, points: Points) -> Tensor:
    """Return the divergences of all pairs of two experts' points (or of one's), [B, N, 2]; shifts are centred."""
    first_n1, *second = (log_p_BV.new_tensor(one)[:, None] for one in points)

    def sums(rows: slice, words: slice) -> Tensor:
        delta_BTV_ = delta_BTV[rows, :, words]
        left_BnV = (log_p_BV[rows, None, words] + first_n1 * delta_BTV_[:, :1]).exp_()
        right_BnV = (second[0] * delta_BTV_[:, 1:]).exp_() if second else torch.ones_like(delta_BTV_[:, :1])
        parts = [right_BnV, *(right_BnV * delta_BV[:, None] for delta_BV in delta_BTV_.unbind(1))]
        return left_BnV @ torch.cat(parts, dim=1).transpose(1, 2)

    sum_BnM = _piecewise(sums, log_p_BV, 2 * (1 + len(points)) * max(map(len, points)))
    total_BN, *moments = (part.flatten(1) for part in sum_BnM.chunk(1 + len(points), dim=2))
    log_sum_BN = total_BN.log()
    shift_BN = (alpha_NT * torch.stack(moments, dim=-1)).sum(-1) / total_BN
    return torch.stack([shift_BN - log_sum_BN, log_sum_BN], dim=-1)


def _piecewise(sums: Callable[[slice, slice], Tensor], log_p_BV: Tensor, vectors: int) -> Tensor:
    """Return sums over the words, taken for some rows and some words at a time, which bounds the memory.

    Args:
        sums: rows and words -> their sums; those of different words add up.
        log_p_BV: tells the sizes.
        vectors: held at once by ``sums`` for each row.
    """
    rows, words = log_p_BV.shape
    elements = CHUNK_ELEMENTS["cuda" if log_p_BV.is_cuda else "cpu"] // vectors
    some_rows = max(1, elements // words)
    some_words = max(LEAST_WORDS, elements // some_rows)
    found = []
    for row in range(0, rows, some_rows):
        part = [sums(slice(row, row + some_rows), slice(v, v + some_words)) for v in range(0, words, some_words)]
        found.append(torch.stack(part).sum(0) if len(part) > 1 else part[0])
    return torch.cat(found)


def _one_active(alpha_BTK: Tensor) -> Tensor:
    """Return candidates with one active expert, [B, T K, T], from K values of alpha for each."""
    rows, experts, count = alpha_BTK.shape
    one_TT = torch.eye(experts, device=alpha_BTK.device)
    return (alpha_BTK[..., None] * one_TT[:, None]).reshape(rows, experts * count, experts)
