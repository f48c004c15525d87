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

BISECTIONS, REFINEMENTS, REFINED_POINTS = 8, 5, 9
"""A range of 2 is halved so often; what is left is cut to a quarter so often, to 0.002 or less."""


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
    search = _bisected if config.search == "bisection" else _from_grid
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
    """Return the first candidate of least loss, alpha [B, T], and its loss [B]; what rounding tells apart is equal."""
    alpha_NT = log_p_BV.new_tensor(candidates(config, delta_BTV.shape[1]))
    loss_BN = losses(_grid_divergences(log_p_BV, delta_BTV, alpha_NT, config), target_BT2).nan_to_num(nan=torch.inf)
    least_B1 = loss_BN.amin(-1, keepdim=True)
    best_B = (loss_BN <= least_B1 * (1 + ROUNDING) + ROUNDING**2).to(torch.uint8).argmax(-1)
    return alpha_NT[best_B], loss_BN.gather(1, best_B[:, None])[:, 0]


def _grid_divergences(log_p_BV: Tensor, delta_BTV: Tensor, alpha_NT: Tensor, config: FusionConfig) -> Tensor:
    """Return the divergences of a grid's candidates, [B, N, 2], in blocks of rows that bound the memory."""
    delta_BTV = _centred(log_p_BV, delta_BTV)
    words, experts = log_p_BV.shape[1], delta_BTV.shape[1]
    points = grid_points(config, experts)
    furthest = max(abs(alpha) for one in points for alpha in one)
    if bool(delta_BTV.amax() * furthest > LARGEST_EXPONENT) or config.negative:
        return divergences(log_p_BV, delta_BTV, alpha_NT[None])
    most = max(map(len, points))
    vectors = 2 * (1 + experts) * most if config.search == "joint" else 5 * experts * (math.isqrt(most) + 1)
    elements = CHUNK_ELEMENTS["cuda" if log_p_BV.is_cuda else "cpu"] // vectors
    rows = max(1, elements // words)
    sums = _joint_sums if config.search == "joint" else _single_sums
    parts = []
    for log_p, delta in zip(log_p_BV.split(rows), delta_BTV.split(rows), strict=True):
        # Sums over the words add up, so a long vocabulary is taken in pieces that stay in the cache.
        at_once = max(LEAST_WORDS, elements // rows)
        pieces = zip(log_p.split(at_once, -1), delta.split(at_once, -1), strict=True)
        found = [sums(*piece, points, config.step) for piece in pieces]
        total_BN, moment_BNT = (torch.stack(part).sum(0) for part in zip(*found, strict=True))
        log_sum_BN = total_BN.log()
        shift_BN = (alpha_NT * moment_BNT).sum(-1) / total_BN
        parts.append(torch.stack([shift_BN - log_sum_BN, log_sum_BN], dim=-1))
    return torch.cat(parts)


def _single_sums(log_p_BV: Tensor, delta_BTV: Tensor, points: Points, step: float) -> tuple[Tensor, Tensor]:
    """Return sum P exp(alpha d_t) and its derivatives by the experts' alphas, [B, N] and [B, N, T].

    exp(alpha d) at alpha = low + step (m i + j) is exp((low + step m i) d) exp(step j d): about 2 sqrt(n) vectors, and
    one matrix product that sums all their pairs, stand for n exponentials.
    """
    rows, experts, _ = delta_BTV.shape
    most = max(map(len, points))
    width = math.isqrt(most - 1) + 1
    near_m = step * torch.arange(width, device=log_p_BV.device)
    far_m = step * width * torch.arange(-(-most // width), device=log_p_BV.device)
    far_Tm1 = (log_p_BV.new_tensor([one[0] for one in points])[:, None] + far_m)[..., None]
    right_BTmV = (near_m[:, None] * delta_BTV[:, :, None]).exp_()
    left_BTmV = (log_p_BV[:, None, None] + far_Tm1 * delta_BTV[:, :, None]).exp_()
    right_BTMV = torch.cat([right_BTmV, right_BTmV * delta_BTV[:, :, None]], dim=2)
    sums = (left_BTmV @ right_BTMV.transpose(-1, -2)).unflatten(-1, (2, width))
    total_BTn, moment_BTn = (sums[..., part, :].flatten(2) for part in (0, 1))
    total_BN = torch.cat([total_BTn[:, t, : len(one)] for t, one in enumerate(points)], dim=1)
    moment_BNT = total_BN.new_zeros(rows, total_BN.shape[1], experts)
    start = 0
    for t, one in enumerate(points):
        moment_BNT[:, start : start + len(one), t] = moment_BTn[:, t, : len(one)]
        start += len(one)
    return total_BN, moment_BNT


def _joint_sums(log_p_BV: Tensor, delta_BTV: Tensor, points: Points, step: float) -> tuple[Tensor, Tensor]:
    """Return the same of one or two experts together: P exp(alpha_1 d_1) times exp(alpha_2 d_2), all pairs at once."""
    first_n1, *second = (log_p_BV.new_tensor(one)[:, None] for one in points)
    left_BnV = (log_p_BV[:, None] + first_n1 * delta_BTV[:, :1]).exp_()
    right_BnV = (second[0] * delta_BTV[:, 1:]).exp_() if second else torch.ones_like(log_p_BV)[:, None]
    parts = [right_BnV, *(right_BnV * delta_BV[:, None] for delta_BV in delta_BTV.unbind(1))]
    total, *moments = (left_BnV @ torch.cat(parts, dim=1).transpose(1, 2)).chunk(len(parts), dim=2)
    return total.flatten(1), torch.stack([moment.flatten(1) for moment in moments], dim=-1)


def _bisected(log_p_BV: Tensor, delta_BTV: Tensor, target_BT2: Tensor, config: FusionConfig) -> tuple[Tensor, Tensor]:
    """Return the best alpha of one active expert, [B, T], and its loss [B].

    Both divergences grow with alpha, so the minimum along an expert lies between the alpha at which the first reaches
    its mean target and the one at which the second does. These two are bisected; what is between is narrowed by
    ever finer grids.
    """
    rows, experts = delta_BTV.shape[:2]
    bounds = log_p_BV.new_tensor(config.ranges_of(experts))
    low_BT2 = bounds[:, 0, None].expand(rows, experts, 2)
    high_BT2 = bounds[:, 1, None].expand(rows, experts, 2)
    mean_B12 = target_BT2.mean(1, keepdim=True)
    for _ in range(BISECTIONS):
        middle_BT2 = (low_BT2 + high_BT2) / 2
        reached_BT22 = divergences(log_p_BV, delta_BTV, _along_each(middle_BT2)).view(rows, experts, 2, 2)
        below_BT2 = reached_BT22.diagonal(dim1=2, dim2=3) < mean_B12
        low_BT2, high_BT2 = torch.where(below_BT2, middle_BT2, low_BT2), torch.where(below_BT2, high_BT2, middle_BT2)
    low_BT, high_BT = low_BT2.amin(-1), high_BT2.amax(-1)
    share_K = torch.linspace(0, 1, REFINED_POINTS, device=log_p_BV.device)
    for _ in range(REFINEMENTS):
        point_BTK = low_BT[..., None] + (high_BT - low_BT)[..., None] * share_K
        divergence_BN2 = divergences(log_p_BV, delta_BTV, _along_each(point_BTK))
        loss_BTK = losses(divergence_BN2, target_BT2).view(point_BTK.shape)
        best_BT1 = loss_BTK.argmin(-1, keepdim=True)
        low_BT = point_BTK.gather(-1, (best_BT1 - 1).clamp(min=0))[..., 0]
        high_BT = point_BTK.gather(-1, (best_BT1 + 1).clamp(max=REFINED_POINTS - 1))[..., 0]
    best_BT = point_BTK.gather(-1, best_BT1)[..., 0]
    loss_BT = loss_BTK.gather(-1, best_BT1)[..., 0]
    expert_B1 = loss_BT.argmin(-1, keepdim=True)
    alpha_BT = torch.zeros_like(best_BT).scatter(1, expert_B1, best_BT.gather(1, expert_B1))
    return alpha_BT, loss_BT.gather(1, expert_B1)[:, 0]


def _along_each(alpha_BTK: Tensor) -> Tensor:
    """Return candidates with one active expert, [B, T K, T], from K values of alpha for each."""
    rows, experts, count = alpha_BTK.shape
    one_TT = torch.eye(experts, device=alpha_BTK.device)
    return (alpha_BTK[..., None] * one_TT[:, None]).reshape(rows, experts * count, experts)
