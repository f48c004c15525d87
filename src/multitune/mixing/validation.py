"""Micro-batches of validation rows: the same few of every task at each step, or all of them once.

Letters: N examples, T tasks, S tokens per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from multitune.mixing.batches import PlannedBatches
from multitune.mixing.packing import Rows
from multitune.mixing.shuffling import permuted, scramble, seed_of
from multitune.mixing.tokens import TokenTable

if TYPE_CHECKING:
    from multitune.tasks.task import Form


def validation_batches(
    tables: Sequence[TokenTable],
    *,
    steps: int,
    rows_per_task: int,
    form: Form,
    pack: bool,
    row_length: int,
    pad_token_id: int,
    seed: int,
) -> PlannedBatches:
    """Return one micro-batch per step, each with the same number of rows of every task.

    A task's rows come in a fresh order on every pass over them, so that none is seen twice before all were seen once;
    what a step evaluates depends on the seed and the step alone.

    Args:
        tables: the tasks' validation rows.
        steps: micro-batches.
        rows_per_task: examples of every task in each; a task with fewer rows repeats them.
        form, row_length, pad_token_id: as in ``PlannedBatches``.
        pack: causal only: several examples share a row, which keeps the micro-batch small.
        seed: of the shuffles.
    """
    T = len(tables)
    step_N = np.repeat(np.arange(steps), T * rows_per_task)
    task_N = np.tile(np.repeat(np.arange(T), rows_per_task), steps)
    ordinal_N = step_N * rows_per_task + np.tile(np.arange(rows_per_task), T * steps)
    size_N = np.array([len(table) for table in tables])[task_N]
    key_T = np.array([seed_of(seed, "validation", table.task) for table in tables], dtype=np.uint64)
    repeat_N, position_N = np.divmod(ordinal_N, size_N)
    row_N = permuted(position_N, size_N, scramble(key_T[task_N], repeat_N))
    batches = PlannedBatches(
        tables, task_N, row_N, form=form, pack=False, row_length=row_length, pad_token_id=pad_token_id
    )
    starts = np.arange(0, len(task_N), T * rows_per_task)
    batches.plan(*_rows(batches.lengths_N, starts, row_length if pack else 0))
    return batches


def single_pass(
    tables: Sequence[TokenTable],
    *,
    rows_per_task: int | None,
    rows_per_batch: int,
    form: Form,
    row_length: int,
    pad_token_id: int,
    seed: int,
) -> PlannedBatches:
    """Return micro-batches that hold rows of every table once, longest first within a task.

    Args:
        tables: the tasks' rows.
        rows_per_task: at most so many of each, drawn by the seed; None: all.
        rows_per_batch: examples per micro-batch.
        form, row_length, pad_token_id: as in ``PlannedBatches``.
        seed: of the draw.
    """
    rows = [_drawn(table, rows_per_task, seed) for table in tables]
    task_N = np.repeat(np.arange(len(tables)), [len(drawn) for drawn in rows])
    row_N = np.concatenate(rows)
    batches = PlannedBatches(
        tables, task_N, row_N, form=form, pack=False, row_length=row_length, pad_token_id=pad_token_id
    )
    batches.plan(*_rows(batches.lengths_N, np.arange(0, len(task_N), rows_per_batch), 0))
    return batches


def _drawn(table: TokenTable, count: int | None, seed: int) -> np.ndarray:
    """Return some rows of a table, or all of them, longest first."""
    size = len(table)
    row_N = np.arange(size)
    if count is not None and count < size:
        key_N = np.full(count, seed_of(seed, "validation", table.task), dtype=np.uint64)
        row_N = permuted(np.arange(count), np.full(count, size), scramble(key_N, np.zeros(count, dtype=np.int64)))
    return row_N[np.argsort(-table.lengths[row_N], kind="stable")]


def _rows(length_N: np.ndarray, starts_M: np.ndarray, capacity: int) -> tuple[Rows, np.ndarray]:
    """Put consecutive examples into rows while they fit; no row crosses the start of a micro-batch (next fit).

    Returns:
        The rows, and the number of the first row of every micro-batch, with the count of rows at the end.
    """
    begins, opens_M, used = [], set(starts_M.tolist()), 0
    for index, length in enumerate(length_N.tolist()):
        used += length
        if index in opens_M or used > capacity:
            begins.append(index)
            used = length
    offsets = np.array([*begins, len(length_N)])
    return Rows(np.arange(len(length_N)), offsets), np.append(np.searchsorted(offsets, starts_M), len(begins))
