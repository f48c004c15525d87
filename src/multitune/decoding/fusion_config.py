"""How logits are fused: the coefficients, the search for them, and what of it cannot be."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from multitune.errors import MultituneError

MOST_CANDIDATES = 10_000
"""Coefficients tried per token; a grid of more is a typing error in its step."""

JOINT_EXPERTS = 2
"""A joint grid has n^T candidates; the paper stops at one active expert, the house at two."""


class FusionConfig(BaseModel):
    """Coefficients of dynamic logit fusion (arXiv:2406.15480); the defaults are the paper's.

    Attributes:
        alpha: "dynamic" searches them anew for every token; a number weighs all experts the same, always (1 with one
            expert is proxy tuning, arXiv:2401.08565); a list gives every expert a number of its own.
        search: "grid" tries every multiple of ``step``, one active expert at a time; "bisection" solves for one active
            expert without a grid; "joint" tries every pair of multiples for two experts.
        ranges: (lowest, highest) alpha: one for all experts, or one for each.
        step: of the grid.
        negative: whether coefficients below 0, which move away from an expert, are meant.
        large_prompt, small_prompt: text that the large model alone, or small base and experts alone, read before every
            prompt: demonstrations, for instance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: Literal["dynamic"] | float | tuple[float, ...] = "dynamic"
    search: Literal["grid", "bisection", "joint"] = "grid"
    ranges: tuple[tuple[float, float], ...] = ((0.0, 2.0),)
    step: float = Field(0.1, gt=0)
    negative: bool = False
    large_prompt: str = ""
    small_prompt: str = ""

    def ranges_of(self, experts: int) -> tuple[tuple[float, float], ...]:
        """Return (lowest, highest) alpha of each expert."""
        return self.ranges * experts if len(self.ranges) == 1 else self.ranges

    def fixed(self, experts: int) -> tuple[float, ...] | None:
        """Return the fixed coefficient of each expert; None when they are searched."""
        if self.alpha == "dynamic":
            return None
        return self.alpha if isinstance(self.alpha, tuple) else (float(self.alpha),) * experts


def check_fusion(config: FusionConfig, experts: int) -> None:
    """Check that coefficients can be searched for so many experts.

    Raises:
        MultituneError: no expert; a list of another length; a range that is reversed, not finite or below 0 without
            ``negative``; a search that does not do what is asked.
    """
    if experts < 1:
        raise MultituneError("There is no expert to fuse.", "experts", "Name at least one tuned small model.")
    fixed = config.fixed(experts)
    if fixed is not None:
        _check_fixed(config, fixed, experts)
        return
    if len(config.ranges) not in (1, experts):
        raise MultituneError(
            f"There are {len(config.ranges)} ranges for {experts} experts.",
            "ranges",
            "Give one range for all experts, or one for each.",
        )
    for low, high in config.ranges:
        _check_range(low, high, config)
    if config.search == "joint" and experts > JOINT_EXPERTS:
        raise MultituneError(
            f"The joint search is for at most {JOINT_EXPERTS} experts, not {experts}.",
            "search: joint",
            "Use search: grid, which has one active expert per token.",
        )


def _check_fixed(config: FusionConfig, fixed: tuple[float, ...], experts: int) -> None:
    if len(fixed) != experts:
        raise MultituneError(
            f"There are {len(fixed)} coefficients for {experts} experts.", "alpha", "Give one number, or one for each."
        )
    for alpha in fixed:
        if not math.isfinite(alpha):
            raise MultituneError(f"The coefficient {alpha} is no finite number.", "alpha", "Give a number such as 1.0.")
        if alpha < 0 and not config.negative:
            raise MultituneError(
                f"The coefficient {alpha} is below 0: it moves away from the expert.",
                "alpha",
                "Give a number from 0 up, or say negative: true if this is meant.",
            )


def _check_range(low: float, high: float, config: FusionConfig) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise MultituneError(f"The range [{low}, {high}] is not finite.", "ranges", "Give two numbers such as [0, 2].")
    if low > high:
        raise MultituneError(
            f"The range [{low}, {high}] is reversed.", "ranges", f"Write the lower end first: [{high}, {low}]."
        )
    if low < 0 and not config.negative:
        raise MultituneError(
            f"The range [{low}, {high}] reaches below 0: such coefficients move away from the expert.",
            "ranges",
            "Start it at 0, or say negative: true if this is meant.",
        )
    if low < 0 and config.search == "bisection":
        raise MultituneError(
            "The bisection needs divergences that grow with alpha, which they do from 0 up only.",
            "ranges",
            "Start the range at 0, or use search: grid.",
        )
    points = int((high - low) / config.step) + 1
    if points ** (2 if config.search == "joint" else 1) > MOST_CANDIDATES:
        raise MultituneError(
            f"The range [{low}, {high}] in steps of {config.step} has {points:,} points.",
            "step",
            "Take a larger step, or search: bisection.",
        )
