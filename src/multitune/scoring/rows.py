"""Which rows of a task are scored: all, or a sample that is the same for every model, seed and run."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multitune.tasks.task import Prompted


def sample(prompted: Iterable[Prompted], examples: int | None) -> list[Prompted]:
    """Return a random sample of examples, each with all its templates, in the order in which they came.

    An example is in by the digest of its id: the sample does not change with the order of the rows, with a seed or with
    the model, and a smaller sample is part of a larger one. Holds no more than the sample in memory.

    Args:
        prompted: a stream in which an example's templates follow one another.
        examples: at most so many examples; None keeps all.
    """
    if examples is None:
        return list(prompted)
    groups = (list(group) for _, group in groupby(prompted, key=lambda one: one.example.id))
    kept = heapq.nsmallest(examples, enumerate(groups), key=lambda place: _digest(place[1][0].example.id))
    return [one for _, group in sorted(kept, key=lambda place: place[0]) for one in group]


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
