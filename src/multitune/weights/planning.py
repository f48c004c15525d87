"""What a merge will cost, from headers alone: bytes, time, memory, and which tensors are left out. Loads no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any

from multitune.weights.arrangement import Arrangement, arrange
from multitune.weights.checkpoints import BYTES
from multitune.weights.config import MergeConfig
from multitune.weights.parameters import check

NANOSECONDS = {
    "linear": 1.5,
    "passthrough": 2.0,
    "task_arithmetic": 1.6,
    "slerp": 3.0,
    "multislerp": 3.0,
    "model_stock": 3.5,
    "ties": 6.5,
    "dare_linear": 5.0,
    "dare_ties": 6.0,
    "della": 60.0,
    "della_linear": 60.0,
    "breadcrumbs": 8.0,
    "breadcrumbs_ties": 9.0,
    "sce": 8.0,
    "consensus": 5.0,
    "tall_mask": 4.0,
    "half_reset": 3.0,
}
"""Processor time per entry of the result and model, measured on a shared AMD EPYC with AVX-512; a guide."""

READS = {"ties": 3.6, "breadcrumbs": 3.0, "breadcrumbs_ties": 3.0}
"""How often methods that rank magnitudes read an input, measured: a sample, one or two counts, the merge itself."""

SELECTING_READS = 4.6
"""The same of SCE where it selects."""

START_SECONDS = 2.0
START_BYTES = 180_000_000
"""Of the imports."""

BUFFERED = 1 << 21
"""Entries that a thread holds at most per model: its chunk, and the patterns that it counts."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """The forecast of a merge.

    Attributes:
        bytes_to_read: of all inputs, each counted once.
        bytes_to_write: of the result's tensors.
        seconds: forecast, by the clock, with all cores free and the inputs in memory.
        peak_bytes: forecast of the anonymous memory.
        tensors: of the result.
        merged: how many of them are computed; the others are copied.
        left_out: tensors of an input that the result does not have, with the reason.
        parameters: the method's parameters by tensor, as resolved.
        passes: how often the inputs are read, about. The first comes from the disk; the others too, where memory does
            not hold all inputs.
    """

    bytes_to_read: int
    bytes_to_write: int
    seconds: float
    peak_bytes: int
    tensors: int
    merged: int
    left_out: dict[str, str]
    parameters: dict[str, dict[str, Any]]
    passes: float


def plan_merge(config: MergeConfig) -> MergePlan:
    """Return what a merge would read, write and take.

    Raises:
        MultituneError: whatever ``merge`` would refuse before it reads data.
    """
    check(config)
    return plan_of(arrange(config))


def plan_of(arrangement: Arrangement) -> MergePlan:
    """Return the forecast for inputs that are matched already."""
    config, jobs = arrangement.config, arrangement.jobs
    models = max((len(job.models) for job in jobs), default=1)
    entries = sum(prod(job.shape) for job in jobs if job.merged)
    norm = int(config.lines is not None and config.lines.alpha == "norm")
    reads = READS.get(config.method, 1.0)
    if any(job.parameters.get("select_topk", 1.0) < 1 for job in jobs[:1]):
        reads = SELECTING_READS
    threads = _threads()
    return MergePlan(
        sum(each.bytes for each in arrangement.inputs),
        sum(BYTES[job.dtype] * prod(job.shape) for job in jobs),
        forecast_seconds(config.method, entries, models, norm),
        START_BYTES + threads * (models + 2) * BUFFERED * 4,
        len(jobs),
        sum(job.merged for job in jobs),
        arrangement.left_out,
        {job.name: job.parameters for job in jobs if job.merged},
        reads + norm,
    )


def forecast_seconds(method: str, entries: int, models: int, ahead: int = 0) -> float:
    """Return a merge's time by the clock, with all cores free and the inputs in memory.

    Args:
        method: name.
        entries: of the result.
        models: that are merged.
        ahead: passes over the whole model before the result is written, for LiNeS' norms.
    """
    return START_SECONDS + NANOSECONDS[method] * 1e-9 * entries * models * (1 + ahead) / _threads()


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
