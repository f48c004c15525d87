"""Which entries of a tensor are the largest, exactly, without a sort: order statistics of magnitudes from a stream.

Entries are ranked by magnitude, then by index: of equal magnitudes the first comes first. A rank r is found in two
passes over the tensor and one look at a single chunk:

1. The upper 16 bits of |x| in float32, as an integer, order magnitudes coarsely (a 128th of an octave). Their
   histogram tells the bucket that holds rank r.
2. A histogram of the lower 16 bits within that bucket gives the value, and by chunk how often it occurs.
3. The chunk in which the last of the equal entries lies gives its index.

All counts are integers, so that neither chunks nor threads change the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch

COARSE = 1 << 15
"""Buckets of the upper half of a magnitude; its sign bit is clear."""

FINE = 1 << 16


@dataclass(frozen=True, slots=True)
class Cut:
    """A border in the ranking: above are entries larger than ``value``, and those equal to it before ``index``."""

    value: float
    index: int


EVERYTHING, NOTHING = Cut(0.0, 1 << 62), Cut(inf, 0)
"""The cuts below all entries and above all."""


@dataclass(frozen=True, slots=True)
class Rows:
    """T vectors of one length, read side by side in chunks.

    Attributes:
        numel: entries of each vector.
        starts: index of every chunk's first entry, ascending.
        read: start of a chunk -> its entries, float32 [T, n]; the same each time. The result lives until the next call.
    """

    numel: int
    starts: Sequence[int]
    read: Callable[[int], torch.Tensor]


def in_memory(vectors: torch.Tensor, chunk: int = 1 << 16) -> Rows:
    """Return the rows of a float32 matrix [T, numel] as if they were read in chunks."""
    numel = vectors.shape[1]
    return Rows(numel, range(0, numel, chunk), lambda start: vectors[:, start : start + chunk])


def cuts(rows: Rows, ranks: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """Return for every vector and each of its ranks r the cut that has the r largest entries above it.

    Args:
        rows: T vectors.
        ranks: for each vector its ranks, 0 to ``numel``.
    """
    inside = [sorted({rank for rank in own if 0 < rank < rows.numel}) for own in ranks]
    found = [{0: NOTHING, rows.numel: EVERYTHING if rows.numel else NOTHING} for _ in ranks]
    if any(inside):
        counts = coarse_counts(rows, [bool(own) for own in inside])
        borders = [[bucket_of(counts[t], rank) for rank in own] for t, own in enumerate(inside)]
        tables = fine_counts(rows, [sorted({bucket for bucket, _ in own}) for own in borders])
        for t, own in enumerate(inside):
            for rank, (bucket, rest) in zip(own, borders[t], strict=True):
                bits, equals, start = tables[t][bucket].locate(bucket, rest)
                places = torch.nonzero(magnitude_bits(rows.read(start)[t]) == bits)
                found[t][rank] = Cut(value_of(bits), start + int(places[equals - 1]) + 1)
    return [[found[t][rank] for rank in own] for t, own in enumerate(ranks)]


def coarse_counts(rows: Rows, wanted: Sequence[bool]) -> np.ndarray:
    """Return how many entries of each vector have each upper half, int64 [T, COARSE]; zero where not wanted."""
    counts = np.zeros((len(wanted), COARSE), np.int64)
    for start in rows.starts:
        for t, x in enumerate(rows.read(start)):
            if wanted[t]:
                upper = magnitude_bits(x).bitwise_right_shift_(16)
                counts[t] += torch.bincount(upper, minlength=COARSE).cpu().numpy()
    return counts


def fine_counts(rows: Rows, buckets: Sequence[Sequence[int]]) -> list[dict[int, FineCounts]]:
    """Return for every vector and each of its buckets how often the values in it occur."""
    tables = [{bucket: FineCounts() for bucket in own} for own in buckets]
    for start in rows.starts:
        for x, own in zip(rows.read(start), tables, strict=True):
            for bucket, table in own.items():
                table.add(start, x, bucket)
    return tables


def magnitude_bits(x: torch.Tensor) -> torch.Tensor:
    """Return |x| (float32) as int32 whose order is the order of magnitudes."""
    return x.abs().view(torch.int32)


def bucket_of(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Return the bucket in which rank ``rank`` (1 is the largest) lies, and its rank within the bucket."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - above


class FineCounts:
    """How often each value of one coarse bucket occurs, chunk by chunk; few values per chunk are kept, no histogram."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, np.ndarray, np.ndarray]] = []  # start, low halves, counts

    def add(self, start: int, x: torch.Tensor, bucket: int) -> None:
        bits = magnitude_bits(x)
        low = bits[(bits >> 16) == bucket].bitwise_and_(FINE - 1)
        if low.numel():
            counts = torch.bincount(low, minlength=FINE).cpu().numpy()
            values = np.flatnonzero(counts)
            self.chunks.append((start, values, counts[values]))

    def locate(self, bucket: int, rank: int) -> tuple[int, int, int]:
        """Return the bits of the entry of this rank in the bucket, its number among its equals in its chunk, and that
        chunk's start."""
        total = np.zeros(FINE, np.int64)
        for _, values, counts in self.chunks:
            total[values] += counts
        low, rest = bucket_of(total, rank)
        for start, values, counts in self.chunks:
            here = int(counts[values == low].sum())
            if rest <= here:
                return (bucket << 16) | low, rest, start
            rest -= here
        raise AssertionError("the passes over the vector gave different entries")


def value_of(bits: int) -> float:
    """Return the magnitude whose float32 pattern is ``bits``."""
    return float(np.array(bits, np.int32).view(np.float32))


def keep_above_(x: torch.Tensor, cut: Cut, start: int) -> torch.Tensor:
    """Zero, in place, what is not above the cut; not-a-number stays. ``start`` is the index of x[0] in its vector.

    hardshrink zeroes |x| <= threshold in one vectorised operation, where a boolean mask takes three slow ones; equal
    entries before the cut's index stay because their threshold is the next smaller number.
    """
    split = min(max(cut.index - start, 0), x.numel())
    below = float(np.nextafter(np.float32(cut.value), np.float32(0)))
    for part, threshold in ((x[:split], below), (x[split:], cut.value)):
        if part.numel():
            torch.ops.aten.hardshrink.out(part, threshold, out=part)
    return x


def keep_band_(x: torch.Tensor, upper: Cut, lower: Cut, start: int) -> torch.Tensor:
    """Zero, in place, what is above the upper cut or not above the lower one."""
    top = keep_above_(x.clone(), upper, start)
    return keep_above_(x, lower, start).sub_(top)  # exact: x - x or x - 0
