"""Features cut into at most 255 bins once, so that trees are grown on bytes.

Bin 0 is for what is missing. A numeric feature with few distinct values has a bin for each, cut halfway between
neighbours, so that its trees are those of the exact engine; others are cut at weighted quantiles. The bin of a category
is its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

MOST_BINS = 255
SAMPLE = 200_000  # rows by which a larger table's cuts are found: the quantiles of so many are good to a tenth of a bin

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BinnedFeatures:
    """A table as bytes.

    Attributes:
        bins: uint8 (D, N), one feature after another.
        bin_counts: (D,), bins of each feature, the one for missing values included.
        low, high: (D, MOST_BINS + 1), the smallest and the largest value of each bin of a numeric feature; where only a
            sample was looked at, the cuts around it.
        categorical: (D,).
    """

    bins: npt.NDArray[np.uint8]
    bin_counts: npt.NDArray[np.int64]
    low: Floats
    high: Floats
    categorical: npt.NDArray[np.bool_]


def bin_features(
    X: Floats,
    weight: Floats,
    categorical: Sequence[bool],
    seed: int,
    most_bins: int = MOST_BINS,
    order: npt.NDArray[np.intp] | None = None,
) -> BinnedFeatures:
    """Return a table as bytes.

    Args:
        X: (N, D), nan where missing; categories as codes from 1 to 255.
        weight: (N,), above 0, in the order of the result: a row of weight 2 counts in the quantiles as two rows do.
        seed: of the sample of a table of more than 200,000 rows.
        most_bins: of a numeric feature, for values that are there.
        order: of the rows in the result; taken column by column, so that no second table of numbers is made.
    """
    N, D = X.shape
    bins = np.empty((D, N), dtype=np.uint8)
    bin_counts = np.empty(D, dtype=np.int64)
    low, high = np.zeros((2, D, MOST_BINS + 1))
    sample = slice(None) if N <= SAMPLE else np.sort(np.random.default_rng(seed).choice(N, SAMPLE, replace=False))
    for j in range(D):
        column = np.ascontiguousarray(X[:, j]) if order is None else X[order, j]
        missing = np.isnan(column)
        some = bool(missing.any())
        if categorical[j]:
            bins[j] = np.where(missing, 0, column).astype(np.uint8) if some else column.astype(np.uint8)
            bin_counts[j] = int(bins[j].max()) + 1
            continue
        cuts, lows, highs = cut_points(column[sample], weight[sample], most_bins)
        count = len(cuts) + 1
        if N > SAMPLE:  # other rows of a bin may lie beyond those of the sample
            lows, highs = np.append(lows[:1], cuts), np.append(cuts, highs[-1:])
        low[j, 1 : count + 1], high[j, 1 : count + 1] = lows, highs
        _find_bins(bins[j], column, cuts)
        bin_counts[j] = count + 1
    return BinnedFeatures(bins, bin_counts, low, high, np.asarray(categorical, dtype=bool))


def cut_points(values: Floats, weight: Floats, most_bins: int) -> tuple[Floats, Floats, Floats]:
    """Return where a numeric feature is cut, and the smallest and the largest value of every bin.

    It is cut between all its distinct values, or at weighted quantiles of them.
    """
    present = ~np.isnan(values)
    if not present.any():
        return np.empty(0), np.zeros(1), np.zeros(1)
    if (weight == weight[0]).all():
        ordered = np.sort(values[present])
        reached_N = np.arange(1.0, len(ordered) + 1) * weight[0]
    else:
        order = np.argsort(values[present])
        ordered = values[present][order]
        reached_N = np.cumsum(weight[present][order])
    ends = np.append(np.flatnonzero(ordered[1:] > ordered[:-1]), len(ordered) - 1)  # where each distinct value ends
    distinct = ordered[ends]
    if len(distinct) > most_bins:
        reached = reached_N[ends]
        wanted = reached[-1] * np.arange(1, most_bins) / most_bins
        # The sums of equal weights in other orders differ in the last digits; a cut must not move for that.
        last = np.unique(np.searchsorted(reached * (1 + 1e-12), wanted, side="left"))
        last = last[last < len(distinct) - 1]
    else:
        last = np.arange(len(distinct) - 1)
    highs, lows = np.append(distinct[last], distinct[-1]), np.append(distinct[0], distinct[last + 1])
    return halfway(highs[:-1], lows[1:]), lows, highs


@njit(cache=True, nogil=True)
def _find_bins(out, column, cuts):  # type: ignore[no-untyped-def]  # compiled, and called by bin_features alone
    """Write every value's bin: 1 more than the cuts below it, as x <= cut lies left of it; 0 where it is missing.

    By halving steps that need no guess, which a search that stops early does at every one.
    """
    reach = 1
    while reach <= len(cuts):
        reach *= 2
    padded = np.full(reach, np.inf)
    padded[: len(cuts)] = cuts
    for i in range(len(column)):
        x, at = column[i], 0
        step = reach // 2
        while step > 0:
            at += step if padded[at + step - 1] < x else 0
            step //= 2
        out[i] = 0 if np.isnan(x) else at + 1


def halfway(low: Floats, high: Floats) -> Floats:
    """Return the middle of low < high, below high also where floating point has nothing between them."""
    middle = low / 2 + high / 2  # the sum of large values would overflow
    return np.where((low <= middle) & (middle < high), middle, low)
