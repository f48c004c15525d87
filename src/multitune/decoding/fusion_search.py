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

FORBIDDEN = -1e4
"""Stands for a logit of minus infinity inside the divergences: weightless, and finite in every product."""

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Candidates times words looked at in one go: 1 MiB stays in a core's cache, 256 MiB keeps a GPU busy."""

BISECTIONS, REFINEMENTS, REFINED_POINTS = 8, 5, 9
"""A range of 2 is halved so often; what is left is cut to a quarter so often, to 0.002 or less."""


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
    target_BT2 = torch.stack(
        [(log_qt_BTV.exp() * delta_BTV).sum(-1), -(log_q_BV.exp()[:, None] * delta_BTV).sum(-1)], dim=-1
    )
    search = _bisected if config.search == "bisection" else _from_grid
    alpha_BT, loss_B = search(log_p_BV, delta_BTV, target_BT2, config)
    return Fused(shifted(large_BV, small_BV, expert_BTV, alpha_BT), alpha_BT, loss_B)


def shifted(large_BV: Tensor, small_BV: Tensor, expert_BTV: Tensor, alpha_BT: Tensor) -> Tensor:
    """Return M^L + sum_t alpha_t (M_t - M^S), [B, V]; where alpha is 0, M^L bit for bit."""
    delta_BTV = expert_BTV - small_BV[:, None]
    delta_BTV = torch.where(expert_BTV == small_BV[:, None], 0.0, delta_BTV)  # both minus infinity
    weighed_BTV = torch.where(alpha_BT[..., None] == 0, 0.0, alpha_BT[..., None] * delta_BTV)
    return large_BV + weighed_BTV.sum(1)


def divergences(log_p_BV: Tensor, delta_BTV: Tensor, alpha_BNT: Tensor) -> Tensor:
    """Return KL(Ptilde||P) and KL(P||Ptilde) in nats of every candidate, [B, N, 2].

    Shifts are centred under P first, so that E_P[v] is 0 and no large constant is subtracted from another.

    Args:
        log_p_BV: log-probabilities of the large model.
        delta_BTV: the experts' shifts, up to a constant per row.
        alpha_BNT: the candidates; the first axis may be 1 where all rows share them.
    """
    delta_BTV = delta_BTV - (log_p_BV.exp()[:, None] * delta_BTV).sum(-1, keepdim=True)
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
    points = [_points(low, high, config.step) for low, high in config.ranges_of(experts)]
    if config.search == "joint":
        return tuple(product(*points))
    return tuple(
        tuple(alpha if other == t else 0.0 for other in range(experts)) for t in range(experts) for alpha in points[t]
    )


def _points(low: float, high: float, step: float) -> list[float]:
    """Return low, low + step, ... up to high; rounded, so that the tenth tenth is 1."""
    count = int((high - low) / step + 1e-9) + 1
    return [round(low + step * i, 9) for i in range(count)]


def _from_grid(log_p_BV: Tensor, delta_BTV: Tensor, target_BT2: Tensor, config: FusionConfig) -> tuple[Tensor, Tensor]:
    """Return the first candidate of least loss, alpha [B, T], and its loss [B]."""
    alpha_NT = log_p_BV.new_tensor(candidates(config, delta_BTV.shape[1]))
    loss_BN = losses(divergences(log_p_BV, delta_BTV, alpha_NT[None]), target_BT2)
    best_B = loss_BN.argmin(-1)
    return alpha_NT[best_B], loss_BN.gather(1, best_B[:, None])[:, 0]


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
