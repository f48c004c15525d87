"""The histogram engine: what the compiled growth of `boosting_growth` is given, and trees out of what it returns.

The rows of a root never change: their numbers and weights are counted once per fit.

Shape legend: ``N`` rows of the table, ``M`` rows of all trees that are grown together, ``S`` trees, ``D`` features,
``B`` bins, ``K`` outputs, ``R`` = K or K + 1 channels of a row (the weighted targets, and the weight where it is not
1), ``C`` channels that are added up.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multitune.tabular.boosting_bins import BinnedFeatures
from multitune.tabular.boosting_exact import TreeSettings
from multitune.tabular.boosting_growth import count_root, grow_trees
from multitune.tabular.boosting_trees import Trees

UNROLLED = 2  # channels of a row up to which the loops are compiled of their own
DEEPEST = 40  # levels of splits at most

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
        self.unweighted = bool((weight == 1).all())
        self.cover_NW = (
            np.ones((len(weight), 1)) if self.unweighted else np.column_stack([weight, np.ones(len(weight))])
        )
        self.pooled_cover = self._root_sums(self.cover_NW, np.array([0, len(weight)]))
        # Those of many tasks of few rows would take more room than the table does.
        few = 2 * (len(starts) - 1) * self._bins <= len(weight)
        self.own_counts = (
            self._root_sums(self.cover_NW, self.starts) if self.unweighted and few else np.empty((0, 0, 0, 0))
        )

    @property
    def _bins(self) -> int:
        return int(self.table.bin_counts.max())

    def pooled(self, *targets_NK: Floats) -> tuple[Trees, list[Floats]]:
        """Return a tree over all rows for each of the targets, and what each says of the training rows."""
        N, S = len(self.cover_NW), len(targets_NK)
        rows_NR = [self._rows(target) for target in targets_NK]
        K = targets_NK[0].shape[1]
        every = rows_NR[0][:, :K] if S == 1 else np.hstack([rows[:, :K] for rows in rows_NR])
        sums = self._root_sums(every, np.array([0, N]))[0]  # one pass: all of them add to the same bins
        roots = [np.concatenate([sums[:, :, k : k + K], self.pooled_cover[0]], axis=2) for k in range(0, S * K, K)]
        trees, said = self._grow(np.concatenate(rows_NR), np.arange(S + 1) * N, K, np.stack(roots))
        return trees, [said[a : a + N] for a in range(0, S * N, N)]

    def per_task(self, target_NK: Floats) -> tuple[Trees, Floats]:
        """Return a tree for every task over its own rows, and what it says of them."""
        rows_NR, K = self._rows(target_NK), target_NK.shape[1]
        return self._grow(rows_NR.copy(), self.starts, K, np.empty((0, 0, 0, 0)))

    def _rows(self, target_NK: Floats) -> Floats:
        if self.unweighted:
            return target_NK
        return np.column_stack([target_NK * self.cover_NW[:, :1], self.cover_NW[:, 0]])

    def _root_sums(self, channels_NC: Floats, starts: npt.NDArray[np.int64]) -> Floats:
        """Return what each stretch of rows adds up to in every bin, (S, D, B, channels)."""
        table, S, C = self.table, len(starts) - 1, channels_NC.shape[1]
        sums = np.zeros((S, len(table.bins), self._bins, C))
        channels_NC = np.ascontiguousarray(channels_NC)
        for slot in range(S):
            count_root(sums[slot], table.bins, channels_NC, int(starts[slot]), int(starts[slot + 1]), _unrolled(C))
        return sums

    def _grow(self, rows_MR: Floats, starts: npt.NDArray[np.int64], K: int, roots: Floats) -> tuple[Trees, Floats]:
        table, settings = self.table, self.settings
        deepest = min(settings.max_depth, DEEPEST)
        most = min((len(starts) - 1) * (2 ** (deepest + 1) - 1), 2 * len(rows_MR))
        nodes, said = grow_trees(
            table.bins,
            table.bin_counts,
            table.categorical,
            table.low,
            table.high,
            rows_MR,
            starts,
            K,
            _unrolled(rows_MR.shape[1]),
            roots,
            self.own_counts,
            deepest,
            settings.min_samples_leaf,
            settings.l2,
            most,
        )
        return Trees(*nodes, roots=np.arange(len(starts) - 1, dtype=np.int32)[None]), said  # type: ignore[misc]


def _unrolled(channels: int) -> tuple[int, ...] | npt.NDArray[np.float64]:
    """Return something with so many entries; of a tuple that number is known when a loop over it is compiled."""
    return (0,) * channels if channels <= UNROLLED else np.zeros(channels)
