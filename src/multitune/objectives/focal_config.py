"""The focal loss of a recipe; nothing heavy is imported here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat


class FocalConfig(BaseModel):
    """A focal loss of MFTCoder (arXiv 2311.02303): examples, or tasks, that are still hard count more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["sample", "task"] = Field(description="whether an example or a whole task is hard or easy")
    gamma: NonNegativeFloat = Field(2.0, description="0 is the plain mean over tasks of the mean over their examples")
    alpha: dict[str, NonNegativeFloat] = Field({}, description="factor per task; 1 where not given")
    detach_factor: bool = Field(False, description="keep (1 - P)^gamma out of the gradient")
