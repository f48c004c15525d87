"""The histogram engine: all trees of an iteration grown level by level, one compiled pass over the rows per level.

The rows of a node are kept together, so that every (tree, node) has its histograms in turn in the same small buffer,
and memory does not grow with the number of tasks.

Shape legend: ``N`` rows of the table, ``M`` rows of all trees that are grown together, ``S`` trees, ``D`` features,
``K`` outputs, ``C`` = K + 1 channels of a histogram (the weighted target and the weight) or K + 2 (with the number of
rows, where it is not the weight), ``V`` nodes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from multitune.tabular.boosting_bins import BinnedFeatures, halfway
from multitune.tabular.boosting_exact import TreeSettings
from multitune.tabular.boosting_trees import LEVELS, Trees

CHUNK = 4096  # rows whose targets stay in the cache while all features are counted
UNROLLED = 3  # channels for which the loop is compiled of its own: one or two outputs
ROUNDING = 1e-12  # of a node's sum of squares: splits closer than that are equally good, and the first one is taken

Floats = npt.NDArray[np.float64]


class HistogramEngine:
    """Grows trees on binned features.

    Args:
        table: its rows sorted by task.
        starts: (T + 1,), where the rows of each task begin.
        weight: (N,), above 0.
    """

    def __init__(
        self, table: BinnedFeatures, starts: npt.NDArray[np.intp], weight: Floats, settings: TreeSettings
    ) -> None:
        self.table, self.settings = table, settings
        self.starts = starts.astype(np.int64)
        self.weight = weight
        self.unweighted = bool((weight == 1).all())
        self.pooled_starts = np.array([0, len(weight)], dtype=np.int64)

    def pooled(self, *targets_NK: Floats) -> tuple[Trees, list[Floats]]:
        """Return a tree over all rows for each of the targets, and what each says of the training rows."""
        N = len(self.weight)
        starts = np.arange(len(targets_NK) + 1, dtype=np.int64) * N
        trees, said = self._grow(np.concatenate([self._channels(target) for target in targets_NK]), starts)
        return trees, [said[a : a + N] for a in starts[:-1]]

    def per_task(self, target_NK: Floats) -> tuple[Trees, Floats]:
        """Return a tree for every task over its own rows, and what it says of them."""
        return self._grow(self._channels(target_NK), self.starts)

    def _channels(self, target_NK: Floats) -> Floats:
        N, K = target_NK.shape
        channels = np.empty((N, K + 1 + (not self.unweighted)))
        channels[:, :K] = target_NK if self.unweighted else target_NK * self.weight[:, None]
        channels[:, K] = self.weight
        channels[:, -1] = 1.0
        return channels

    def _grow(self, channels_MC: Floats, starts: npt.NDArray[np.int64]) -> tuple[Trees, Floats]:
        table, settings = self.table, self.settings
        K = channels_MC.shape[1] - 1 - (not self.unweighted)
        deepest = settings.max_depth if settings.max_depth < 40 else 40
        most = min((len(starts) - 1) * (2 ** (deepest + 1) - 1), 2 * len(channels_MC))
        nodes, place, grown = _grow_level_by_level(
            table.bins,
            table.bin_counts,
            table.categorical,
            channels_MC,
            starts,
            K,
            (0,) * C if (C := channels_MC.shape[1]) <= UNROLLED else np.zeros(C),
            deepest,
            settings.min_samples_leaf,
            most,
        )
        feature, split_bin, next_bin, left, missing_left, begin, end, sums, left_codes, sets = nodes
        inner, by_value = feature[:grown] >= 0, split_bin[:grown] > 0
        low, high = table.high[feature[:grown], split_bin[:grown]], table.low[feature[:grown], next_bin[:grown]]
        high = np.where(next_bin[:grown] > 0, high, np.inf)  # everything that is there goes left
        cover = sums[:grown, K].copy()
        value = sums[:grown, :K] / (cover + settings.l2)[:, None]
        said = np.empty((len(place), K))
        _say(said, place, feature, begin, end, value, grown)
        trees = Trees(
            feature=feature[:grown].copy(),
            threshold=np.where(by_value, np.where(np.isinf(high), high, halfway(low, high)), 0.0),
            left=left[:grown].copy(),
            right=np.where(inner, left[:grown] + 1, -1).astype(np.int32),
            missing_left=missing_left[:grown].copy(),
            categories=sets[:grown].copy(),
            left_codes=left_codes[: sets[:grown].max() + 1].copy(),
            value=value,
            cover=cover,
            roots=np.arange(len(starts) - 1, dtype=np.int32)[None],
        )
        return trees, said


@njit(cache=True, nogil=True)
def _grow_level_by_level(  # type: ignore[no-untyped-def]  # compiled, and called by _grow alone
    bins, bin_counts, categorical, channels, starts, K, unrolled, max_depth, min_samples, most
):
    """Grow one tree over each stretch of rows.

    ``unrolled`` has as many entries as there are channels; of a tuple that number is known when this is compiled.
    """
    D, N = bins.shape
    M, C = channels.shape
    count = C - 1
    feature = np.full(most, -1, np.int32)
    split_bin, next_bin = np.zeros(most, np.int32), np.zeros(most, np.int32)
    left = np.full(most, -1, np.int32)
    missing_left = np.zeros(most, np.bool_)
    begin = np.zeros(most, np.int64)
    end = np.zeros(most, np.int64)
    offset = np.zeros(most, np.int64)
    sums = np.zeros((most, C))
    sets = np.full(most, -1, np.int32)
    left_codes = np.zeros((most // 2 + 1 if categorical.any() else 0, LEVELS), np.bool_)
    used_sets = 0

    place = np.arange(M)
    spare_place = np.empty(M, np.int64)
    spare_channels = np.empty((M, C))
    histogram = np.zeros((D, bin_counts.max(), C))
    order = np.empty(LEVELS, np.int64)
    mean = np.empty(LEVELS)
    goes_left = np.empty(LEVELS, np.bool_)
    running = np.empty(C)

    slots = len(starts) - 1
    for slot in range(slots):
        begin[slot], end[slot] = starts[slot], starts[slot + 1]
        offset[slot] = starts[slot] // N * N  # the second tree over all rows begins at row N
        _total(sums[slot], channels, begin[slot], end[slot], C)
    first, grown = 0, slots
    for _ in range(max_depth):
        level_end = grown
        for node in range(first, level_end):
            a, b = begin[node], end[node]
            total = sums[node]
            if total[count] < 2 * min_samples:
                continue
            squares, parent = 0.0, 0.0
            for i in range(a, b):
                for k in range(K):
                    squares += channels[i, k] * channels[i, k] / channels[i, K]
            for k in range(K):
                parent += total[k] * total[k] / total[K]
            tolerance = ROUNDING * squares
            if squares - parent <= max(tolerance, 2.3e-16 * total[K]):
                continue

            for f in range(D):
                histogram[f, : bin_counts[f]] = 0.0
            for c0 in range(a, b, CHUNK):
                c1 = min(b, c0 + CHUNK)
                for f in range(D):
                    for i in range(c0, c1):
                        at = bins[f, place[i] - offset[node]]
                        for c in range(len(unrolled)):
                            histogram[f, at, c] += channels[i, c]

            best = -np.inf
            best_feature, best_position, best_missing_left = -1, 0, False
            for f in range(D):
                h = histogram[f]
                if categorical[f]:
                    present = _by_mean(h, bin_counts[f], total, K, order, mean)
                else:
                    present = _in_order(h, bin_counts[f], order)
                some_missing = h[0, count] > 0
                if present < 2 and not some_missing:
                    continue
                running[:] = 0.0
                for position in range(present):
                    for c in range(C):
                        running[c] += h[order[position], c]
                    if position == present - 1 and not some_missing:
                        break
                    for way in range(2 if some_missing and position < present - 1 else 1):
                        # way 0: missing values go right; way 1: left
                        counted = running[count] + (h[0, count] if way else 0.0)
                        if counted < min_samples or total[count] - counted < min_samples:
                            continue
                        weight = running[K] + (h[0, K] if way else 0.0)
                        gain = 0.0
                        for k in range(K):
                            s = running[k] + (h[0, k] if way else 0.0)
                            rest = total[k] - s
                            gain += s * s / weight + rest * rest / (total[K] - weight)
                        if gain > best + tolerance:
                            best, best_feature, best_position = gain, f, position
                            best_missing_left = way == 1
            if best_feature < 0:
                continue

            h = histogram[best_feature]
            if categorical[best_feature]:
                present = _by_mean(h, bin_counts[best_feature], total, K, order, mean)
            else:
                present = _in_order(h, bin_counts[best_feature], order)
            goes_left[:] = False
            if categorical[best_feature]:
                for position in range(best_position + 1):
                    goes_left[order[position]] = True
            else:
                goes_left[1 : order[best_position] + 1] = True
            goes_left[0] = best_missing_left

            # Left rows move up, right rows after them; both stay in their order.
            to, kept = a, 0
            for i in range(a, b):
                if goes_left[bins[best_feature, place[i] - offset[node]]]:
                    place[to] = place[i]
                    for c in range(len(unrolled)):
                        channels[to, c] = channels[i, c]
                    to += 1
                else:
                    spare_place[kept] = place[i]
                    for c in range(len(unrolled)):
                        spare_channels[kept, c] = channels[i, c]
                    kept += 1
            place[to:b] = spare_place[:kept]
            channels[to:b] = spare_channels[:kept]

            for child, (ca, cb) in enumerate(((a, to), (to, b))):
                begin[grown + child], end[grown + child] = ca, cb
                offset[grown + child] = offset[node]
                _total(sums[grown + child], channels, ca, cb, C)
            feature[node] = best_feature
            left[node] = grown
            heavier_left = sums[grown, K] >= sums[grown + 1, K]
            missing_left[node] = best_missing_left if h[0, count] > 0 else heavier_left
            if categorical[best_feature]:
                # A code that no row here has goes with the heavier side, as a missing one does.
                for code in range(LEVELS):
                    absent = code >= bin_counts[best_feature] or h[code, count] == 0
                    left_codes[used_sets, code] = heavier_left if absent else goes_left[code]
                sets[node] = used_sets
                used_sets += 1
            else:
                split_bin[node] = order[best_position]
                next_bin[node] = order[best_position + 1] if best_position + 1 < present else 0
            grown += 2
        first = level_end
        if grown == level_end:
            break
    nodes = (feature, split_bin, next_bin, left, missing_left, begin, end, sums, left_codes, sets)
    return nodes, place, grown


@njit(cache=True, nogil=True)
def _total(out, channels, a, b, C):  # type: ignore[no-untyped-def]
    for i in range(a, b):
        for c in range(C):
            out[c] += channels[i, c]


@njit(cache=True, nogil=True)
def _in_order(h, bins, order):  # type: ignore[no-untyped-def]
    """Write the bins that have rows, from 1 on, and return their number."""
    present = 0
    for at in range(1, bins):
        if h[at, h.shape[1] - 1] > 0:
            order[present] = at
            present += 1
    return present


@njit(cache=True, nogil=True)
def _by_mean(h, bins, total, K, order, mean):  # type: ignore[no-untyped-def]
    """Write the codes that have rows by the mean of their target (Fisher 1958), and return their number.

    Of several outputs the one counts whose means differ most.
    """
    present = _in_order(h, bins, order)
    output, most = 0, -1.0
    for k in range(K):
        between = 0.0
        for position in range(present):
            at = order[position]
            between += h[at, k] * h[at, k] / h[at, K]
        between -= total[k] * total[k] / total[K]
        if between > most:
            output, most = k, between
    for position in range(present):
        at = order[position]
        mean[at] = h[at, output] / h[at, K]
        back = position
        while back > 0 and mean[order[back - 1]] > mean[at]:
            order[back] = order[back - 1]
            back -= 1
        order[back] = at
    return present


@njit(cache=True, nogil=True)
def _say(said, place, feature, begin, end, value, grown):  # type: ignore[no-untyped-def]
    for node in range(grown):
        if feature[node] < 0:
            for i in range(begin[node], end[node]):
                for k in range(value.shape[1]):
                    said[place[i], k] = value[node, k]
