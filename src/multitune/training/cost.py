"""What a training takes: time per step, peak memory, and how fast its model reads afterwards."""

from __future__ import annotations

import logging
import re
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multitune.mixing.tokens import TokenTable
from multitune.mixing.validation import single_pass
from multitune.models.loading import Backbone
from multitune.training.losses import LossModule, labelled

logger = logging.getLogger("multitune.training")

ROWS_PER_TASK = 16
"""Rows of every task that a reading is measured on."""

ENOUGH_SECONDS = 0.1
"""A reading is repeated until it has taken so long; on a large model once is enough."""


class StepTimes(TrainerCallback):
    """Measures optimiser steps, without the evaluations between them: it comes before other callbacks."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    @property
    def median(self) -> float | None:
        """Seconds per step; None where nothing was trained."""
        return statistics.median(self.seconds) if self.seconds else None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time."""
        self._begun = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note what has passed since."""
        self.seconds.append(time.perf_counter() - self._begun)


def reset_peak_memory() -> None:
    """Begin to look for a new peak: on a GPU that of its tensors, else that of the process, where Linux allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak in bytes since `reset_peak_memory`; None where the system does not tell.

    On a GPU what tensors took there; else the high-water mark of the whole process, Python and libraries with it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        told = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return 1024 * int(told.group(1)) if told else None
    with suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


@torch.no_grad()
def reading_speed(backbone: Backbone, tables: Sequence[TokenTable], rows_per_batch: int, row_length: int) -> float:
    """Return how many tokens per second a model reads in forward passes, with the heads of labelled tokens.

    Args:
        backbone: in evaluation mode.
        tables: rows of its tasks; the first few of each are read.
        rows_per_batch: of a forward pass.
        row_length: longest row in tokens.
    """
    batches = single_pass(
        tables,
        rows_per_task=ROWS_PER_TASK,
        rows_per_batch=rows_per_batch,
        form=backbone.form,
        row_length=row_length,
        pad_token_id=backbone.tokenizer.pad_token_id,
        seed=0,
    )
    losses = LossModule(backbone, [table.task for table in tables]).eval()
    device = next(backbone.model.parameters()).device
    prepared, tokens = [], []
    for place in range(len(batches)):
        batch = batches[place] | labelled(batches[place], backbone.form)._asdict()
        mask_BS = batch["attention_mask"] if "attention_mask" in batch else batch["example_ids"] >= 0
        tokens.append(int(mask_BS.sum()))
        prepared.append({name: value.to(device) for name, value in batch.items()})
    started = time.perf_counter()
    losses(prepared[0])  # what is set up at a first pass does not count, unless one pass is slow enough
    _wait(device)
    first = time.perf_counter() - started
    if first >= ENOUGH_SECONDS:
        return tokens[0] / first
    read, started = 0, time.perf_counter()
    while time.perf_counter() - started < ENOUGH_SECONDS:
        for batch, count in zip(prepared, tokens, strict=True):
            losses(batch)
            read += count
        _wait(device)
    return read / (time.perf_counter() - started)


def reading_speeds(
    backbone: Backbone, tables: Sequence[TokenTable], rows_per_batch: int, row_length: int, *, merges: bool
) -> dict[str, float | None]:
    """Return the `reading_speed` with the adapter beside the weights and merged into them: {"unmerged", "merged"}.

    A model without adapter is as fast as a merged one; None stands where there is nothing to measure, or no memory for
    it: a measurement ends no training.

    Args:
        backbone: saved already: its adapter is merged in place, which uses it up.
        tables, rows_per_batch, row_length: as for `reading_speed`.
        merges: whether its method can be merged.
    """
    speeds: dict[str, float | None] = {"unmerged": None, "merged": None}
    encoder = hasattr(backbone.model, "heads")
    adapted = backbone.model.encoder if encoder else backbone.model
    try:
        speed = reading_speed(backbone, tables, rows_per_batch, row_length)
        if not hasattr(adapted, "peft_config"):
            return speeds | {"merged": speed}
        speeds["unmerged"] = speed
        if merges and backbone.config.quantize is None:
            merged = adapted.merge_and_unload()
            if encoder:
                backbone.model.encoder = merged
            else:
                backbone = replace(backbone, model=merged)
            speeds["merged"] = reading_speed(backbone, tables, rows_per_batch, row_length)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        logger.warning("the speed at inference could not be measured: %s", str(error).strip().splitlines()[0])
    return speeds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
