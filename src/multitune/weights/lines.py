"""LiNeS: the factor of a task vector by depth (arXiv 2410.17146)."""

from __future__ import annotations

from multitune.models.architecture import TensorPlace
from multitune.weights.config import Lines


def depth_factor(place: TensorPlace, lines: Lines, alpha: float) -> float:
    """Return lambda(l) = alpha + beta (l - 1) / (L - 1) for a tensor in block l = 1..L, alpha outside the blocks.

    alpha + beta where L is 1: the only block is the deepest. With ``outside: deepest``, norms and heads behind the last
    block get the deepest block's factor.

    Args:
        place: where the tensor stands.
        lines: beta, and the rule for tensors outside.
        alpha: as given, or found by the norm rule.
    """
    if place.layer is None:
        is_behind = place.category in ("norm", "head")
        return alpha + lines.beta if lines.outside == "deepest" and is_behind else alpha
    return alpha + lines.beta * (place.layer / (place.layers - 1) if place.layers > 1 else 1.0)
