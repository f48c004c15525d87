"""What a recipe says of methods that change how weights are updated: which entries, how fast, and what moves along.

Needs no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class UpdateConfig(BaseModel):
    """Options of a method that acts on the optimiser; the adapter's own options, if there is one, are peft's."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraPlusConfig(UpdateConfig):
    """LoRA+ (arXiv:2402.12354): B learns faster than A.

    Attributes:
        rate_ratio: learning rate of B divided by that of A; the paper advises 16 on RoBERTa and Llama.
    """

    rate_ratio: float = Field(16.0, ge=1)


class LoraFaConfig(UpdateConfig):
    """LoRA-FA (arXiv:2308.03303): A stays as it was drawn; B follows the projected gradient."""


class DeltaLoraConfig(UpdateConfig):
    """Delta-LoRA (arXiv:2309.02411): W moves along with B A, by a multiple of what B A has moved.

    Attributes:
        delta_ratio: that multiple, lambda; the paper takes 2. At 0 it is LoRA.
        delta_start: optimiser steps before W begins to move; the paper takes 500 of several thousand.
    """

    delta_ratio: float = Field(2.0, ge=0)
    delta_start: int = Field(0, ge=0)


class FisherConfig(UpdateConfig):
    """FISH mask (arXiv:2111.09839): the entries with the largest Fisher information train, all others stay.

    Attributes:
        keep: how many entries train, or, below 1, their share; the paper trains 0.5 %.
        samples: examples whose squared gradients are averaged before training.
    """

    keep: float = Field(0.005, gt=0)
    samples: int = Field(1024, ge=1)


class ChildTuningConfig(UpdateConfig):
    """Child-Tuning (arXiv:2109.05687): only a child network, a part of the entries, is updated.

    Attributes:
        variant: ``F``: another part at every step, drawn at random; ``D``: the entries with the largest Fisher
            information, found before training.
        reserve: the share of the entries that is updated, p; the paper takes 0.2 to 0.4 (F) and 0.1 to 0.3 (D).
        samples: of variant D: examples whose squared gradients are averaged.
    """

    variant: Literal["F", "D"] = "F"
    reserve: float = Field(0.3, gt=0, le=1)
    samples: int = Field(1024, ge=1)


UPDATES: dict[str, type[UpdateConfig]] = {
    "child_tuning": ChildTuningConfig,
    "delta_lora": DeltaLoraConfig,
    "fish": FisherConfig,
    "lora_fa": LoraFaConfig,
    "lora_plus": LoraPlusConfig,
}
"""Methods whose optimiser does something of its own, with their options."""
