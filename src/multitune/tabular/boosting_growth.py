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
ALIKE = 2.3e-16  # mean square about the mean below which targets are alike, as in scikit-learn's trees
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
    """Grow one tree over each stretch of rows, and return its nodes, the rows in the order of the leaves, and V.

    ``unrolled`` has as many entries as there are channels; of a tuple that number is known when this is compiled.
    """
    D, N = bins.shape
    M, C = channels.shape
    count = C - 1
    feature = np.full(most, -1, np.int32)
    split_bin, next_bin = np.zeros(most, np.int32), np.zeros(most, np.int32)
    left = np.full(most, -1, np.int32)
    missing_left = np.zeros(most, np.bool_)
    begin, end, offset = np.zeros(most, np.int64), np.zeros(most, np.int64), np.zeros(most, np.int64)
    sums, squares = np.zeros((most, C)), np.zeros(most)
    sets = np.full(most, -1, np.int32)
    left_codes = np.zeros((most // 2 + 1 if categorical.any() else 0, LEVELS), np.bool_)
    used_sets = 0

    place, spare_place, spare_channels = np.arange(M, dtype=np.int32), np.empty(M, np.int32), np.empty((M, C))
    histogram = np.zeros((D, bin_counts.max(), C))
    order, mean, goes_left = np.empty(LEVELS, np.int64), np.empty(LEVELS), np.empty(LEVELS, np.bool_)

    slots = len(starts) - 1
    for slot in range(slots):
        begin[slot], end[slot] = starts[slot], starts[slot + 1]
        offset[slot] = starts[slot] // N * N  # the second tree over all rows begins at row N
        squares[slot] = _add_up(sums[slot], channels, begin[slot], end[slot], K, unrolled)
    first, grown = 0, slots
    for _ in range(max_depth):
        level_end = grown
        for node in range(first, level_end):
            a, b, total = begin[node], end[node], sums[node]
            tolerance = _tolerance(squares[node], total, K)
            if total[count] < 2 * min_samples or tolerance < 0:
                continue
            _count_bins(histogram, bins, bin_counts, place, channels, a, b, offset[node], unrolled)
            f, at, way = _best_split(histogram, bin_counts, categorical, total, K, min_samples, tolerance, order, mean)
            if f < 0:
                continue
            h = histogram[f]
            goes_left[:] = False
            goes_left[0] = way == 1
            if categorical[f]:
                _listed(h, bin_counts[f], True, total, K, order, mean)
                for i in range(at + 1):
                    goes_left[order[i]] = True
            else:
                goes_left[1 : at + 1] = True
            middle = _part(
                bins[f], goes_left, place, channels, a, b, offset[node], spare_place, spare_channels, unrolled
            )
            for child, (ca, cb) in enumerate(((a, middle), (middle, b))):
                begin[grown + child], end[grown + child], offset[grown + child] = ca, cb, offset[node]
                squares[grown + child] = _add_up(sums[grown + child], channels, ca, cb, K, unrolled)
            heavier_left = sums[grown, K] >= sums[grown + 1, K]
            feature[node], left[node] = f, grown
            missing_left[node] = goes_left[0] if h[0, count] > 0 else heavier_left
            if categorical[f]:
                # A code that no row here has goes with the heavier side, as a missing one does.
                for code in range(LEVELS):
                    absent = code >= bin_counts[f] or h[code, count] == 0
                    left_codes[used_sets, code] = heavier_left if absent else goes_left[code]
                sets[node] = used_sets
                used_sets += 1
            else:
                split_bin[node] = at
                for following in range(bin_counts[f] - 1, at, -1):
                    if h[following, count] > 0:
                        next_bin[node] = following
            grown += 2
        first = level_end
        if grown == level_end:
            break
    nodes = (feature, split_bin, next_bin, left, missing_left, begin, end, sums, left_codes, sets)
    return nodes, place, grown


@njit(cache=True, nogil=True)
def _add_up(out, channels, a, b, K, unrolled):  # type: ignore[no-untyped-def]
    """Add the channels of rows a to b to ``out``, and return their weighted sum of squares."""
    squares = 0.0
    for i in range(a, b):
        for c in range(len(unrolled)):
            out[c] += channels[i, c]
        of_row = 0.0
        for k in range(K):
            of_row += channels[i, k] * channels[i, k]
        squares += of_row / channels[i, K]
    return squares


@njit(cache=True, nogil=True)
def _tolerance(squares, total, K):  # type: ignore[no-untyped-def]
    """Return by how much a split has to be better to count as better; -1 where all targets are alike."""
    parent = 0.0
    for k in range(K):
        parent += total[k] * total[k] / total[K]
    return ROUNDING * squares if squares - parent > max(ROUNDING * squares, ALIKE * total[K]) else -1.0


@njit(cache=True, nogil=True)
def _count_bins(histogram, bins, bin_counts, place, channels, a, b, offset, unrolled):  # type: ignore[no-untyped-def]
    for f in range(len(bins)):
        histogram[f, : bin_counts[f]] = 0.0
    for c0 in range(a, b, CHUNK):
        c1 = min(b, c0 + CHUNK)
        for f in range(len(bins)):
            own_bins, h = bins[f], histogram[f]
            for i in range(c0, c1):
                at = np.uintp(own_bins[np.uintp(place[i] - offset)])  # unsigned: no test for below 0
                for c in range(len(unrolled)):
                    h[at, c] += channels[i, c]


@njit(cache=True, nogil=True)
def _best_split(  # type: ignore[no-untyped-def]
    histogram, bin_counts, categorical, total, K, min_samples, tolerance, order, mean
):
    """Return the best feature, -1 for none, the last of its bins that goes left, and the way of missing values.

    The bin of a category is its place in the order of the means. Of splits that are equally good it is the first one.
    The gain is sum_k S_l^2 / W_l + S_r^2 / W_r, less the same of the node, which does not differ between its splits.
    """
    best, best_feature, best_at, best_way = -np.inf, -1, 0, 0
    for f in range(len(histogram)):
        h = histogram[f]
        if K == 1 and not categorical[f]:
            gain, at, way = _best_threshold(h, bin_counts[f], total, min_samples, tolerance, best)
        else:
            present = _listed(h, bin_counts[f], categorical[f], total, K, order, mean)
            gain, at, way = _best_of_many(h, order, present, total, K, min_samples, tolerance, best)
            if at >= 0 and not categorical[f]:
                at = order[at]
        if at >= 0:
            best, best_feature, best_at, best_way = gain, f, at, way
    return best_feature, best_at, best_way


@njit(cache=True, nogil=True)
def _part(own_bins, goes_left, place, channels, a, b, offset, spare_place, spare_channels, unrolled):  # type: ignore[no-untyped-def]
    """Move the rows of the left side up and those of the right side after them, each in their order."""
    to, kept = a, 0
    for i in range(a, b):
        if goes_left[own_bins[np.uintp(place[i] - offset)]]:
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
    return to


@njit(cache=True, nogil=True)
def _best_threshold(h, bins, total, min_samples, tolerance, best):  # type: ignore[no-untyped-def]
    """Return the gain of the best split of a number for one output, its bin, -1 for none better than ``best``, and
    whether missing values go left (1) or right (0).

    Gains are compared without a division. An empty bin repeats the split before it, and is no better.
    """
    count = h.shape[1] - 1
    S, W, N = total[0], total[1], total[count]
    found, found_way = -1, 0
    for way in range(2 if h[0, count] > 0 else 1):
        s, w, n = way * h[0, 0], way * h[0, 1], way * h[0, count]
        for at in range(1, bins):
            s, w, n = s + h[at, 0], w + h[at, 1], n + h[at, count]
            if n < min_samples or N - n < min_samples:
                continue
            numerator, denominator = s * s * (W - w) + (S - s) * (S - s) * w, w * (W - w)
            if numerator > (best + tolerance) * denominator:
                best, found, found_way = numerator / denominator, at, way
    return best, found, found_way


@njit(cache=True, nogil=True)
def _best_of_many(h, order, present, total, K, min_samples, tolerance, best):  # type: ignore[no-untyped-def]
    """Return the same of K outputs, whose gains add up, between bins in an order; the bin as its place in it."""
    count = h.shape[1] - 1
    missing = h[0, count] > 0
    found, found_way = -1, 0
    running = np.zeros(h.shape[1])
    for position in range(present):
        for c in range(count + 1):
            running[c] += h[order[position], c]
        last = position == present - 1
        if last and not missing:
            break
        for way in range(2 if missing and not last else 1):
            counted = running[count] + way * h[0, count]
            if counted < min_samples or total[count] - counted < min_samples:
                continue
            weight = running[K] + way * h[0, K]
            gain = 0.0
            for k in range(K):
                s = running[k] + way * h[0, k]
                gain += s * s / weight + (total[k] - s) * (total[k] - s) / (total[K] - weight)
            if gain > best + tolerance:
                best, found, found_way = gain, position, way
    return best, found, found_way


@njit(cache=True, nogil=True)
def _listed(h, bins, is_category, total, K, order, mean):  # type: ignore[no-untyped-def]
    """Write the bins that have rows, from 1 on, in the order in which they are split, and return their number."""
    present = 0
    for at in range(1, bins):
        if h[at, h.shape[1] - 1] > 0:
            order[present] = at
            present += 1
    if is_category:
        _by_mean(h, present, total, K, order, mean)
    return present


@njit(cache=True, nogil=True)
def _by_mean(h, present, total, K, order, mean):  # type: ignore[no-untyped-def]
    """Sort codes by the mean of their target (Fisher 1958): of the output whose means differ most."""
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


@njit(cache=True, nogil=True)
def _say(said, place, feature, begin, end, value, grown):  # type: ignore[no-untyped-def]
    for node in range(grown):
        if feature[node] < 0:
            for i in range(begin[node], end[node]):
                for k in range(value.shape[1]):
                    said[place[i], k] = value[node, k]
