"""What trains: everything, half of it, or the adapters of one peft method."""

from __future__ import annotations

from multitune.adaptation.adapting import adapt, allocate_ranks, schedule_ranks, trainable_parameters
from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.half import freeze, half_round
from multitune.adaptation.half_config import HalfConfig
from multitune.adaptation.methods import METHODS

__all__ = [
    "METHODS",
    "AdaptationConfig",
    "HalfConfig",
    "adapt",
    "allocate_ranks",
    "freeze",
    "half_round",
    "schedule_ranks",
    "trainable_parameters",
]
