"""What trains: everything, or the adapters of one peft method."""

from __future__ import annotations

from multitune.adaptation.adapting import adapt, allocate_ranks, schedule_ranks, trainable_parameters
from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.methods import METHODS

__all__ = ["METHODS", "AdaptationConfig", "adapt", "allocate_ranks", "schedule_ranks", "trainable_parameters"]
