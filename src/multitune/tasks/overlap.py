"""Rows that are to be scored and stand in the training data too."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterator
from pathlib import Path

from multitune.tasks.bad_rows import BadRows
from multitune.tasks.prompting import split_examples
from multitune.tasks.task import Split, Task

logger = logging.getLogger("multitune.tasks")

SCORED: tuple[Split, ...] = ("validation", "test")


def scored_rows_in_train(task: Task, folder: Path) -> dict[Split, tuple[int, int]]:
    """Return for the validation and test split how many of their rows also stand in train, and how many there are.

    Rows are the same when all their fields are. Splits that are shares of train are left out: equal rows fall on the
    same side. Takes 8 bytes per training row.

    Args:
        task: with training data; splits without rows in common are left out.
        folder: paths are relative to it.

    Raises:
        MultituneError: as reading the rows does.
    """
    import numpy as np

    apart = [split for split in SCORED if (source := task.source(split)) is not None and source.fraction is None]
    if task.train is None or not apart:
        return {}
    train_R = np.sort(np.frombuffer(_digests(task, "train", folder), dtype=np.uint64))
    found: dict[Split, tuple[int, int]] = {}
    for split in apart:
        scored_R = np.frombuffer(_digests(task, split, folder), dtype=np.uint64)
        place_R = np.searchsorted(train_R, scored_R).clip(max=max(0, len(train_R) - 1))
        if len(train_R) and (seen := int((train_R[place_R] == scored_R).sum())):
            found[split] = (seen, len(scored_R))
    return found


def overlap_warnings(task: Task, folder: Path) -> Iterator[str]:
    """Yield a sentence for every split that shares rows with train."""
    for split, (seen, rows) in scored_rows_in_train(task, folder).items():
        yield f"{task.name}: {seen:,} of {rows:,} {split} rows also stand in train, so that they measure what was seen."


def _digests(task: Task, split: Split, folder: Path) -> array[int]:
    digests = array("Q")
    for example in split_examples(task, split, folder, BadRows()):
        digests.append(int.from_bytes(hashlib.blake2b(example.content.encode(), digest_size=8).digest(), "big"))
    return digests
