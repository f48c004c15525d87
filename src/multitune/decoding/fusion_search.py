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

from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from multitune.decoding.fusion_config import FusionConfig
from multitune.decoding.fusion_powers import CHUNK_ELEMENTS, Points, along_each, fit_powers, joint

FORBIDDEN = -1e4
"""Stands for a logit of minus infinity inside the divergences: weightless, and finite in every product."""

ROUNDING = 1e-6
"""Losses that differ relatively by less are equal, and so are divergences that differ absolutely by less."""

SOLVER_POINTS, NARROWINGS = 21, 4
"""Points in a row, and rows, of the search without a grid: the last one is at most 0.0002 wide where ranges are 2."""


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
    alpha_BT, loss_B = _searched(large_BV, small_BV, expert_BTV, config)
    if config.search == "joint" or experts == 1:
        return Fused(shifted(large_BV, small_BV, expert_BTV, alpha_BT), alpha_BT, loss_B)
    row_B, active_B = torch.arange(len(large_BV), device=large_BV.device), alpha_BT.abs().argmax(-1)
    one_B1V, alpha_B1 = expert_BTV[row_B, active_B][:, None], alpha_BT[row_B, active_B][:, None]
    return Fused(shifted(large_BV, small_BV, one_B1V, alpha_B1), alpha_BT, loss_B)


@torch.no_grad()
def _searched(large_BV: Tensor, small_BV: Tensor, expert_BTV: Tensor, config: FusionConfig) -> tuple[Tensor, Tensor]:
    """Return the coefficients [B, T] of least loss, and the losses [B]."""
    p_BV = large_BV.softmax(-1)
    weighable_BV = small_BV.clamp(min=FORBIDDEN)
    delta_BTV = expert_BTV.clamp(min=FORBIDDEN).sub_(weighable_BV[:, None])
    target_BT2 = _targets(weighable_BV, delta_BTV)
    delta_BTV -= delta_BTV @ p_BV[..., None]  # E_P[d] = 0
    search = _solved if config.search == "bisection" else _from_grid
    return search(large_BV, p_BV, delta_BTV, target_BT2, config)


def _targets(small_BV: Tensor, delta_BTV: Tensor) -> Tensor:
    """Return KL(Q_t||Q) and KL(Q||Q_t) of every expert, [B, T, 2]: the divergences along d_t from Q at alpha = 1."""
    q_BV1 = small_BV.softmax(-1)[..., None]
    along_BTV = delta_BTV - delta_BTV @ q_BV1  # E_Q[d] = 0
    if not fit_powers(along_BTV, [(0.0, 1.0)]):
        log_q_B1V = small_BV.log_softmax(-1)[:, None]
        log_qt_BTV = (log_q_B1V + delta_BTV).log_softmax(-1)
        shift_BTV = log_qt_BTV - log_q_B1V
        return torch.stack([(log_qt_BTV.exp() * shift_BTV).sum(-1), -(shift_BTV @ q_BV1)[..., 0]], dim=-1)
    weight_BTV = along_BTV.exp()
    total_BT = (weight_BTV @ q_BV1)[..., 0]
    expected_BT = (weight_BTV.mul_(along_BTV) @ q_BV1)[..., 0] / total_BT
    return torch.stack([expected_BT - total_BT.log(), total_BT.log()], dim=-1)


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


def _from_grid(
    large_BV: Tensor, p_BV: Tensor, delta_BTV: Tensor, target_BT2: Tensor, config: FusionConfig
) -> tuple[Tensor, Tensor]:
    """Return the first candidate of least loss, alpha [B, T], and its loss [B]; the shifts are centred."""
    experts = delta_BTV.shape[1]
    alpha_NT, points = p_BV.new_tensor(candidates(config, experts)), grid_points(config, experts)
    ranges = config.ranges_of(experts)
    if config.search == "joint" and fit_powers(delta_BTV, [(low, experts * high) for low, high in ranges]):
        divergence_BN2 = joint(p_BV, delta_BTV, alpha_NT, points)
    elif config.search != "joint" and fit_powers(delta_BTV, ranges):
        low_BT = p_BV.new_tensor([one[0] for one in points]).expand(delta_BTV.shape[:2])
        step_BT = torch.full_like(low_BT, config.step)
        along_BTn2 = along_each(p_BV, delta_BTV, low_BT, step_BT, max(map(len, points)))
        divergence_BN2 = torch.cat([along_BTn2[:, t, : len(one)] for t, one in enumerate(points)], dim=1)
    else:
        divergence_BN2 = divergences(large_BV.log_softmax(-1), delta_BTV, alpha_NT[None])
    loss_BN = losses(divergence_BN2, target_BT2).nan_to_num(nan=torch.inf)
    best_B = _first_least(loss_BN)
    return alpha_NT[best_B], loss_BN.gather(1, best_B[:, None])[:, 0]


def _solved(
    large_BV: Tensor, p_BV: Tensor, delta_BTV: Tensor, target_BT2: Tensor, config: FusionConfig
) -> tuple[Tensor, Tensor]:
    """Return the best alpha of one active expert without a grid, [B, T], and its loss [B]; the shifts are centred.

    Both divergences grow with alpha, so the minimum along an expert lies between the alpha at which the first reaches
    its mean target and the one at which the second does. A first row of points finds these; rows ever finer, between
    the neighbours of the best point, follow.
    """
    bounds = config.ranges_of(delta_BTV.shape[1])
    fits = fit_powers(delta_BTV, bounds)
    low_BT, high_BT = p_BV.new_tensor(bounds).expand(*delta_BTV.shape[:2], 2).unbind(-1)
    mean_B112 = target_BT2.mean(1)[:, None, None]
    for narrowing in range(NARROWINGS):
        step_BT = (high_BT - low_BT) / (SOLVER_POINTS - 1)
        alpha_BTn = low_BT[..., None] + step_BT[..., None] * torch.arange(SOLVER_POINTS, device=p_BV.device)
        if fits:
            divergence_BTn2 = along_each(p_BV, delta_BTV, low_BT, step_BT, SOLVER_POINTS)
        else:
            divergence_BN2 = divergences(large_BV.log_softmax(-1), delta_BTV, _one_active(alpha_BTn))
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


def _one_active(alpha_BTK: Tensor) -> Tensor:
    """Return candidates with one active expert, [B, T K, T], from K values of alpha for each."""
    rows, experts, count = alpha_BTK.shape
    one_TT = torch.eye(experts, device=alpha_BTK.device)
    return (alpha_BTK[..., None] * one_TT[:, None]).reshape(rows, experts * count, experts)
