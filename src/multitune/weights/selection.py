"""Which entries of a vector are the largest, exactly, without a sort: order statistics of magnitudes from a stream.

Entries are ranked by magnitude, then by index: of equal magnitudes the first comes first. The float32 pattern of |x|,
as an integer, has the order of magnitudes, so that a rank is found by counting patterns:

1. A sixteenth of the chunks tells about where the rank lies.
2. One pass counts every pattern in a window there (2 to 4 % of a magnitude wide), and how many lie above and below.
   Where the rank is not in the window, the next window is counted; where it is not there either, all patterns by
   their upper bits, and then those within them.
3. Where only some of the equal entries rank high enough, a last pass finds the index of the last that does.

All counts are integers, so that neither chunks nor threads change the outcome. A vector may be spread over several
parts (the tensors of a model); its index runs through them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch

WINDOW = 5 << 16
"""Patterns that one pass tells apart: an upper half, with two neighbours on either side."""

BATCH = 1 << 17
"""Patterns inside a window that are counted at once: its counters are cleared and added once per batch."""

BLOCK = 512
"""Counters that are summed together when a rank is looked for."""

SAMPLED = 16

PATTERNS = 1 << 31

END = 1 << 62


@dataclass(frozen=True, slots=True)
class Cut:
    """A border in the ranking: above are entries larger than ``value``, and those equal to it before ``index``."""

    value: float
    index: int


EVERYTHING, NOTHING = Cut(0.0, END), Cut(inf, 0)
"""The cuts below all entries and above all."""


@dataclass(frozen=True, slots=True)
class Rows:
    """T vectors of one length, or a part of them, read side by side in chunks.

    Attributes:
        numel: entries of each vector.
        starts: index of every chunk's first entry, ascending.
        read: start of a chunk -> its entries, float32 [T, n], the same each time; the reader may overwrite them.
    """

    numel: int
    starts: Sequence[int]
    read: Callable[[int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """Patterns from ``low`` on, in bins of 2^shift."""

    low: int
    shift: int


FULL = Window(0, 14)

Key = tuple[int, int]
"""A vector and a rank in it."""

Map = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]


def in_memory(vectors: torch.Tensor, chunk: int = 1 << 16) -> Rows:
    """Return the rows of a float32 matrix [T, numel] as if they were read in chunks."""
    numel = vectors.shape[1]
    return Rows(numel, range(0, numel, chunk), lambda start: vectors[:, start : start + chunk].clone())


def cuts(parts: Sequence[Rows], ranks: Sequence[Sequence[int]], each: Map = map) -> list[list[list[Cut]]]:
    """Return, for every part, every vector and each of its ranks r, the cut that has the r largest entries above it.

    Args:
        parts: of T vectors.
        ranks: for each vector its ranks, 0 to the length of all parts.
        each: ``map``, or one that works on several parts at once.
    """
    if len(parts) == 1 and len(parts[0].starts) == 1:
        return [_cuts_of_one_chunk(parts[0], ranks)]
    numel = sum(part.numel for part in parts)
    wanted = [(t, rank) for t, own in enumerate(ranks) for rank in sorted({r for r in own if 0 < r < numel})]
    found = {(t, 0): [NOTHING] * len(parts) for t in range(len(ranks))}
    for t in range(len(ranks)):
        found.setdefault((t, numel), [EVERYTHING] * len(parts))
    sought: dict[Key, tuple[int, int]] = {}
    windows = _first_windows(parts, wanted, numel) if wanted else {}
    missed: set[Key] = set()
    while windows:
        counted = _count(parts, windows, each)
        next_windows: dict[Key, Window] = {}
        for (t, rank), window in windows.items():
            position, rest = _bin_of(counted[t, rank], rank)
            if position in (0, WINDOW + 1):
                beside = window.low + (WINDOW if position else -WINDOW)
                next_windows[t, rank] = FULL if (t, rank) in missed else Window(max(beside, 0), 0)
                missed.add((t, rank))
            elif window.shift:
                next_windows[t, rank] = Window(window.low + ((position - 1) << window.shift), 0)
            else:
                pattern = window.low + position - 1
                if rest == int(counted[t, rank][position]):
                    found[t, rank] = [Cut(_value(pattern), END)] * len(parts)
                else:
                    sought[t, rank] = pattern, rest
        windows = next_windows
    for key, indices in _indices(parts, sought).items():
        found[key] = [Cut(_value(sought[key][0]), index) for index in indices]
    return [[[found[t, rank][number] for rank in own] for t, own in enumerate(ranks)] for number in range(len(parts))]


def _cuts_of_one_chunk(part: Rows, ranks: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """Return what `cuts` does of a vector that is in memory at once: partitioned there, not sorted."""
    start = part.starts[0]
    bits = patterns(part.read(start)).cpu().numpy()
    found = []
    for t, own in enumerate(ranks):
        inner = sorted({rank for rank in own if 0 < rank < part.numel})
        known = {0: NOTHING, part.numel: EVERYTHING}
        partitioned = np.partition(bits[t], [part.numel - rank for rank in inner]) if inner else bits[t]
        for rank in inner:
            pattern = partitioned[part.numel - rank]
            same = np.flatnonzero(bits[t] == pattern)
            rest = rank - int(np.count_nonzero(partitioned[part.numel - rank :] > pattern))
            index = END if rest == len(same) else start + int(same[rest - 1]) + 1
            known[rank] = Cut(_value(int(pattern)), index)
        found.append([known[rank] for rank in own])
    return found


def patterns(x: torch.Tensor) -> torch.Tensor:
    """Return |x| (float32, overwritten) as int32 whose order is the order of magnitudes."""
    return x.abs_().view(torch.int32)


def _value(pattern: int) -> float:
    return float(np.array(pattern, np.int32).view(np.float32))


def _first_windows(parts: Sequence[Rows], wanted: Sequence[Key], numel: int) -> dict[Key, Window]:
    """Return the windows around the ranks of a sample of chunks."""
    places = [(part, start) for part in parts for start in part.starts]
    counts: dict[int, np.ndarray] = {t: np.zeros(1 << 15, np.int64) for t, _ in wanted}
    for part, start in places[SAMPLED // 2 :: SAMPLED] or places[:1]:
        values = part.read(start)
        for t in counts:
            counts[t] += torch.bincount(patterns(values[t]) >> 16, minlength=1 << 15).cpu().numpy()
    windows = {}
    for t, rank in wanted:
        upper, _ = _bin_of(counts[t], max(1, round(rank / numel * int(counts[t].sum()))))
        windows[t, rank] = Window(max(upper - 2, 0) << 16, 0)
    return windows


def _count(parts: Sequence[Rows], windows: dict[Key, Window], each: Map) -> dict[Key, np.ndarray]:
    """Return how many entries lie below, in every bin of, and above each window: int64 [WINDOW + 2]."""
    totals = {key: np.zeros(WINDOW + 2, np.int64) for key in windows}
    lock = threading.Lock()

    def count_part(number: int) -> None:
        part = parts[number]
        waiting: dict[Key, list[torch.Tensor]] = {key: [] for key in windows}
        above = dict.fromkeys(windows, 0)
        filled = dict.fromkeys(windows, 0)

        def empty(key: Key) -> None:
            bins = torch.cat(waiting[key]) >> windows[key].shift
            counts = torch.bincount(bins, minlength=WINDOW).cpu().numpy()
            waiting[key].clear()
            filled[key] = 0
            with lock:
                totals[key][1:-1] += counts

        for start in part.starts:
            values = part.read(start)
            bits = {t: patterns(values[t]) for t in {t for t, _ in windows}}
            for key, window in windows.items():
                inside, higher = _split(bits[key[0]], window)
                above[key] += higher
                waiting[key].append(inside)
                filled[key] += inside.numel()
                if filled[key] >= BATCH:
                    empty(key)
        for key in windows:
            if waiting[key]:
                empty(key)
            with lock:
                totals[key][-1] += above[key]

    for _ in each(count_part, range(len(parts))):
        pass
    numel = sum(part.numel for part in parts)
    for counts in totals.values():
        counts[0] = numel - int(counts.sum())
    return totals


def _split(bits: torch.Tensor, window: Window) -> tuple[torch.Tensor, int]:
    """Return the patterns inside a window, counted from its low end, and how many patterns are above it.

    On a CPU by NumPy: its comparisons and its picking by booleans take a fifth of torch's time.
    """
    width = min(WINDOW << window.shift, PATTERNS - window.low)
    if bits.device.type != "cpu":
        offsets = bits - window.low
        inside = (offsets >= 0) & (offsets < width)
        return offsets[inside], int((offsets >= width).sum())
    offsets_np = bits.numpy() - np.int32(window.low)
    inside_np = offsets_np.view(np.uint32) < np.uint32(width)  # those below wrap around to large numbers
    return torch.from_numpy(offsets_np[inside_np]), int(np.count_nonzero(offsets_np >= width))


def _bin_of(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Return the bin in which rank ``rank`` (1 is the largest) lies, and its rank within the bin.

    First the block of bins, then the bin: a running sum over all of them would be most of a small tensor's time.
    """
    starts = np.arange(0, len(counts), BLOCK)
    block, rest = _place_of(np.add.reduceat(counts, starts), rank)
    start = int(starts[block])
    within, rest = _place_of(counts[start : start + BLOCK], rest)
    return start + within, rest


def _place_of(counts: np.ndarray, rank: int) -> tuple[int, int]:
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - above


def _indices(parts: Sequence[Rows], sought: dict[Key, tuple[int, int]]) -> dict[Key, list[int]]:
    """Return for every part the index behind the last entry that counts, of the first ``rest`` with a pattern.

    Args:
        parts: of the vectors.
        sought: vector and rank -> (pattern, rest).
    """
    found: dict[Key, list[int]] = {key: [] for key in sought}
    rests = {key: rest for key, (_, rest) in sought.items()}
    for number, part in enumerate(parts):
        for start in part.starts if any(rests.values()) else ():
            values = part.read(start)
            bits = {t: patterns(values[t]).cpu().numpy() for t in {t for (t, _), rest in rests.items() if rest}}
            for key in [key for key, rest in rests.items() if rest]:
                same = bits[key[0]] == sought[key][0]
                here = int(np.count_nonzero(same))
                if rests[key] <= here:
                    found[key].append(start + int(np.flatnonzero(same)[rests[key] - 1]) + 1)
                    here = rests[key]
                rests[key] -= here
            if not any(rests.values()):
                break
        for key, rest in rests.items():
            if len(found[key]) == number:  # the border is in another part, before this one or behind
                found[key].append(END if rest else 0)
    return found


def keep_above_(x: torch.Tensor, cut: Cut, start: int) -> torch.Tensor:
    """Zero, in place, what is not above the cut; not-a-number stays. ``start`` is the index of x[0] in its part.

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
