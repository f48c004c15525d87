"""The compiled part of the histogram engine: trees grown on bytes, a node's histograms from its rows or by difference.

The rows of a node are kept together. A tree is grown depth first: of two children the one with fewer rows is counted,
and what is left of the parent's histograms is the other's, so that there is one set of histograms per level, however
many trees there are. The rows of a root never change: their numbers and weights are counted once per fit.

Shape legend: ``N`` rows of the table, ``M`` rows of all trees that are grown together, ``S`` trees, ``D`` features,
``B`` bins, ``K`` outputs, ``R`` = K or K + 1 channels of a row (the weighted targets, and the weight where it is not
1), ``C`` = R + 1 channels of a histogram (the same, and the number of rows), ``V`` nodes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from multitune.tabular.boosting_trees import LEVELS

CHUNK = 4096  # rows whose targets stay in the cache while all features are counted
ALIKE = 2.3e-16  # mean square about the mean below which targets are alike, as in scikit-learn's trees
ROUNDING = 1e-12  # of a node's sum of squares: splits closer than that are equally good, and the first one is taken
KEPT = 12  # levels whose histograms are kept for a difference; deeper nodes are counted each for itself


@njit(cache=True, nogil=True)
def grow_trees(  # type: ignore[no-untyped-def]  # compiled, and called by HistogramEngine alone
    bins, bin_counts, categorical, lows, highs, rows, starts, K, of_row, roots, counts, max_depth, min_samples,
    l2, most,
):  # fmt: skip
    """Grow one tree over each stretch of rows, and return its nodes as ``Trees`` has them, and what it says of rows.

    ``roots`` are the roots' histograms, (S, D, B, C), or empty; ``counts`` their last channel alone, the numbers of
    rows, (S, D, B, 1), or empty. ``rows`` are reordered.
    """
    D, N = bins.shape
    M, R = rows.shape
    C = R + 1
    feature, left, right = np.full(most, -1, np.int32), np.full(most, -1, np.int32), np.full(most, -1, np.int32)
    threshold, missing_left = np.zeros(most), np.zeros(most, np.bool_)
    begin, end = np.zeros(most, np.int64), np.zeros(most, np.int64)
    sums, squares = np.zeros((most, C)), np.zeros(most)
    value, said = np.zeros((most, K)), np.empty((M, K))
    sets = np.full(most, -1, np.int32)
    left_codes = np.zeros((most // 2 + 1 if categorical.any() else 0, LEVELS), np.bool_)
    used_sets = 0

    place, spare_place, spare_rows = np.arange(M, dtype=np.int32), np.empty(M, np.int32), np.empty((M, R))
    kept = min(max_depth, KEPT)
    histograms = np.zeros((kept + 1, D, bin_counts.max(), C))  # of a level each, and one for those deeper down
    order, mean, goes_left = np.empty(LEVELS, np.int64), np.empty(LEVELS), np.empty(LEVELS, np.bool_)
    waiting, level_of = np.empty(2 * max_depth + 2, np.int64), np.empty(2 * max_depth + 2, np.int64)
    held_in = np.empty(2 * max_depth + 2, np.int64)

    slots = len(starts) - 1
    grown = slots
    for slot in range(slots):
        begin[slot], end[slot] = starts[slot], starts[slot + 1]
        offset = starts[slot] // N * N  # the second tree over all rows begins at row N
        squares[slot] = _add_up(sums[slot], rows, begin[slot], end[slot], K, of_row)
        if not _splits(sums[slot], squares[slot], K, min_samples):
            continue
        if len(roots):
            histograms[0] = roots[slot]
        elif len(counts):
            histograms[0, :, :, :R] = 0.0
            histograms[0, :, :, R:] = counts[slot]
            count_root(histograms[0], bins, rows, begin[slot], end[slot], of_row)
        else:
            _count(histograms[0], bins, bin_counts, place, rows, begin[slot], end[slot], offset, of_row)
        waiting[0], level_of[0], held_in[0] = slot, 0, 0
        top = 1
        while top:
            top -= 1
            node, level, held = waiting[top], level_of[top], held_in[top]
            a, b, total = begin[node], end[node], sums[node]
            histogram = histograms[held]
            if held == kept:
                _count(histogram, bins, bin_counts, place, rows, a, b, offset, of_row)
            tolerance = _tolerance(squares[node], total, K)
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
            are_leaves, middle = level + 1 == max_depth, a
            if are_leaves:  # nothing will ask for the order of their rows
                _add_up_sides(sums[grown : grown + 2], bins[f], goes_left, place, rows, a, b, offset, of_row)
                _set_values(value, sums, grown, grown + 2, K, l2)
                _say_by_side(said, value[grown : grown + 2], bins[f], goes_left, place, a, b, offset)
            else:
                middle = _part(bins[f], goes_left, place, rows, a, b, offset, spare_place, spare_rows, of_row)
                squares[grown] = _add_up(sums[grown], rows, a, middle, K, of_row)
                squares[grown + 1] = _add_up(sums[grown + 1], rows, middle, b, K, of_row)
                begin[grown], end[grown], begin[grown + 1], end[grown + 1] = a, middle, middle, b
            heavier_left = sums[grown, K] >= sums[grown + 1, K]
            feature[node], left[node], right[node] = f, grown, grown + 1
            missing_left[node] = goes_left[0] if h[0, R] > 0 else heavier_left
            if categorical[f]:
                # A code that no row here has goes with the heavier side, as a missing one does.
                for code in range(LEVELS):
                    absent = code >= bin_counts[f] or h[code, R] == 0
                    left_codes[used_sets, code] = heavier_left if absent else goes_left[code]
                sets[node] = used_sets
                used_sets += 1
            else:
                threshold[node] = _threshold(h, at, bin_counts[f], lows[f], highs[f])
            children = grown
            grown += 2
            if are_leaves:
                continue
            fewer = 0 if middle - a <= b - middle else 1
            fewer_splits = _splits(sums[children + fewer], squares[children + fewer], K, min_samples)
            more_splits = _splits(sums[children + 1 - fewer], squares[children + 1 - fewer], K, min_samples)
            below = level + 1 if level + 1 < kept else kept
            if below < kept and (fewer_splits or more_splits):
                small = children + fewer
                _count(histograms[below], bins, bin_counts, place, rows, begin[small], end[small], offset, of_row)
                if more_splits:
                    _take_away(histogram, histograms[below], bin_counts)
            if more_splits:
                waiting[top], level_of[top] = children + 1 - fewer, level + 1
                held_in[top] = held if below < kept else kept
                top += 1
            if fewer_splits:
                waiting[top], level_of[top], held_in[top] = children + fewer, level + 1, below
                top += 1
    _set_values(value, sums, 0, grown, K, l2)
    for node in range(grown):
        if feature[node] < 0:
            for i in range(begin[node], end[node]):  # none of those at the greatest depth
                for k in range(K):
                    said[place[i], k] = value[node, k]
    nodes = (
        feature[:grown].copy(), threshold[:grown].copy(), left[:grown].copy(), right[:grown].copy(),
        missing_left[:grown].copy(), sets[:grown].copy(), left_codes[:used_sets].copy(), value[:grown].copy(),
        sums[:grown, K].copy(),
    )  # fmt: skip
    return nodes, said


@njit(cache=True, nogil=True)
def _add_up(out, rows, a, b, K, of_row):  # type: ignore[no-untyped-def]
    """Write what the channels of rows a to b add up to, and their number, and return their weighted sum of squares."""
    R = len(of_row)
    squares = 0.0
    for c in range(len(of_row)):
        added, squared = 0.0, 0.0
        for i in range(a, b):
            x = rows[i, c]
            added += x
            squared += x * x if R == K else x * x / rows[i, K]
        out[c] = added
        if c < K:
            squares += squared
    out[R] = b - a
    return squares


@njit(cache=True, nogil=True)
def _add_up_sides(sums, own_bins, goes_left, place, rows, a, b, offset, of_row):  # type: ignore[no-untyped-def]
    """Write what the channels of the rows of the left side and of the right one add up to, and their numbers."""
    for i in range(a, b):
        side = np.uintp(not goes_left[own_bins[np.uintp(place[np.uintp(i)] - offset)]])
        for c in range(len(of_row)):
            sums[side, c] += rows[np.uintp(i), c]
        sums[side, len(of_row)] += 1.0


@njit(cache=True, nogil=True)
def _set_values(value, sums, first, last, K, l2):  # type: ignore[no-untyped-def]
    for node in range(first, last):
        for k in range(K):
            value[node, k] = sums[node, k] / (sums[node, K] + l2)


@njit(cache=True, nogil=True)
def _say_by_side(said, value, own_bins, goes_left, place, a, b, offset):  # type: ignore[no-untyped-def]
    for i in range(a, b):
        row = np.uintp(place[np.uintp(i)])
        side = np.uintp(not goes_left[own_bins[np.uintp(place[np.uintp(i)] - offset)]])
        for k in range(value.shape[1]):
            said[row, k] = value[side, k]


@njit(cache=True, nogil=True)
def _splits(total, squares, K, min_samples):  # type: ignore[no-untyped-def]
    """Whether a node has rows enough, and targets that are not all alike."""
    return total[len(total) - 1] >= 2 * min_samples and _tolerance(squares, total, K) >= 0


@njit(cache=True, nogil=True)
def _threshold(h, at, bins, lows, highs):  # type: ignore[no-untyped-def]
    """Return the middle between the last bin that goes left and the next one with rows; infinity where there is none.

    The middle is below what follows also where floating point has nothing between the two.
    """
    following = at + 1
    while following < bins and h[following, h.shape[1] - 1] == 0:
        following += 1
    if following >= bins:
        return np.inf
    low, high = highs[at], lows[following]
    middle = low / 2 + high / 2  # the sum of large values would overflow
    return middle if low <= middle < high else low


@njit(cache=True, nogil=True)
def _tolerance(squares, total, K):  # type: ignore[no-untyped-def]
    """Return by how much a split has to be better to count as better; -1 where all targets are alike."""
    parent = 0.0
    for k in range(K):
        parent += total[k] * total[k] / total[K]
    return ROUNDING * squares if squares - parent > max(ROUNDING * squares, ALIKE * total[K]) else -1.0


@njit(cache=True, nogil=True)
def count_root(histogram, bins, rows, a, b, channels):  # type: ignore[no-untyped-def]
    """Add the first channels of rows that stand in the order of the table."""
    for c0 in range(a, b, CHUNK):
        c1 = min(b, c0 + CHUNK)
        for f in range(len(bins)):
            own_bins, h = bins[f], histogram[f]
            for i in range(c0, c1):
                at = np.uintp(own_bins[np.uintp(i)])  # unsigned: no test for below 0
                for c in range(len(channels)):
                    h[at, c] += rows[np.uintp(i), c]


@njit(cache=True, nogil=True)
def _count(histogram, bins, bin_counts, place, rows, a, b, offset, of_row):  # type: ignore[no-untyped-def]
    """Count the rows of a node: all of their channels, and their number."""
    D, B, C = histogram.shape
    R, flat_DX = len(of_row), histogram.reshape(D, B * C)
    for f in range(D):
        for x in range(bin_counts[f] * C):
            flat_DX[f, x] = 0.0
    for c0 in range(a, b, CHUNK):
        c1 = min(b, c0 + CHUNK)
        for f in range(len(bins)):
            own_bins, h = bins[f], histogram[f]
            for i in range(c0, c1):
                at = np.uintp(own_bins[np.uintp(place[np.uintp(i)] - offset)])
                for c in range(len(of_row)):
                    h[at, c] += rows[np.uintp(i), c]
                h[at, R] += 1.0


@njit(cache=True, nogil=True)
def _take_away(histogram, part, bin_counts):  # type: ignore[no-untyped-def]
    """Leave of a node's histograms what is not in one of its children's; numbers of rows stay exact."""
    D, B, C = histogram.shape
    whole_DX, part_DX = histogram.reshape(D, B * C), part.reshape(D, B * C)
    for f in range(D):
        for x in range(bin_counts[f] * C):
            whole_DX[f, x] -= part_DX[f, x]


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
def _part(own_bins, goes_left, place, rows, a, b, offset, spare_place, spare_rows, of_row):  # type: ignore[no-untyped-def]
    """Move the rows of the left side up and those of the right side after them, each in their order.

    Every row is written to both sides and stays where the next one does not come: rows go either way like coins, and a
    processor that guesses wrong loses more time.
    """
    to, kept = np.int64(a), np.int64(0)
    for i in range(a, b):
        is_left = int(goes_left[own_bins[np.uintp(place[i] - offset)]])
        place[np.uintp(to)] = spare_place[np.uintp(kept)] = place[i]
        for c in range(len(of_row)):
            rows[np.uintp(to), c] = spare_rows[np.uintp(kept), c] = rows[i, c]
        to += is_left
        kept += 1 - is_left
    place[to:b] = spare_place[:kept]
    rows[to:b] = spare_rows[:kept]
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
