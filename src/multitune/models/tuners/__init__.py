"""Adapters that peft does not have, as peft's own kind of tuners: they save, load, switch and generate as its do."""

from __future__ import annotations

from multitune.models.tuners.registration import OURS, register_tuners

__all__ = ["OURS", "register_tuners"]
