"""Trees as flat arrays: many of them in one table of nodes, walked by one compiled loop.

Shape legend: ``N`` rows, ``D`` features, ``K`` outputs, ``V`` nodes, ``I`` iterations, ``T`` trees of an iteration (one
for each task, or a single one), ``C`` splits by categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

LEVELS = 256  # codes of a category that a split tells apart; code 0 is a missing or unknown one
NO_CATEGORIES = -1

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Trees:
    """Trees that were grown together, or in turn.

    A row goes left where its value is at most the threshold, or where its code is in the node's set; a missing value
    goes where ``missing_left`` says.

    Attributes:
        feature: (V,), what a node splits by, -1 in a leaf.
        threshold: (V,).
        left, right: (V,), nodes.
        missing_left: (V,).
        categories: (V,), a node's row in ``left_codes``, -1 where it splits by a threshold.
        left_codes: (C, LEVELS), which codes go left.
        value: (V, K), what a leaf adds.
        cover: (V,), the sum of the weights that reached the node in training.
        roots: (I, T).
    """

    feature: Integers
    threshold: Floats
    left: Integers
    right: Integers
    missing_left: npt.NDArray[np.bool_]
    categories: Integers
    left_codes: npt.NDArray[np.bool_]
    value: Floats
    cover: Floats
    roots: Integers

    def scaled(self, factor: float) -> Trees:
        """Return the trees with every value times a factor."""
        return self._with(value=self.value * factor)

    def first(self, iterations: int) -> Trees:
        """Return the trees of the first iterations; the nodes of the others stay, unused."""
        return self._with(roots=self.roots[:iterations])

    def iteration(self, number: int) -> Trees:
        """Return the trees of one iteration."""
        return self._with(roots=self.roots[number : number + 1])

    def tree(self, slot: int) -> Trees:
        """Return one of the trees that were grown together, in every iteration."""
        return self._with(roots=np.ascontiguousarray(self.roots[:, slot : slot + 1]))

    def _with(self, **changed: npt.NDArray[np.generic]) -> Trees:
        return Trees(**{**vars(self), **changed})

    def add_to(self, out_NK: Floats, X: Floats, slot_N: npt.NDArray[np.intp] | None = None) -> None:
        """Add to each row what its trees say, in place.

        Args:
            X: (N, D), values and codes of categories, nan where missing.
            slot_N: which of the T trees of an iteration a row takes; the first one without. Rows below 0 take none.
        """
        if not len(self.roots):
            return
        if slot_N is None:
            slot_N = np.zeros(len(X), dtype=np.intp)
        _add_trees(
            out_NK,
            X,
            slot_N,
            self.feature,
            self.threshold,
            self.left,
            self.right,
            self.missing_left,
            self.categories,
            self.left_codes,
            self.value,
            self.roots,
        )


def no_trees(slots: int, outputs: int) -> Trees:
    """Return the trees of no iteration."""
    whole = np.empty(0, dtype=np.int32)
    return Trees(
        whole,
        np.empty(0),
        whole,
        whole,
        np.empty(0, dtype=bool),
        whole,
        np.empty((0, LEVELS), dtype=bool),
        np.empty((0, outputs)),
        np.empty(0),
        np.empty((0, slots), dtype=np.int32),
    )


def in_turn(parts: Sequence[Trees], slots: int, outputs: int) -> Trees:
    """Return the trees of all iterations, one after another."""
    return _joined([no_trees(slots, outputs), *parts], axis=0)


def side_by_side(parts: Sequence[Trees]) -> Trees:
    """Return the trees of one iteration, one for every slot."""
    return _joined(parts, axis=1)


def _joined(parts: Sequence[Trees], axis: int) -> Trees:
    node_starts = np.cumsum([0, *(len(part.feature) for part in parts)])
    set_starts = np.cumsum([0, *(len(part.left_codes) for part in parts)])

    def stacked(name: str) -> npt.NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    def moved(name: str, starts: npt.NDArray[np.intp]) -> Integers:
        """Numbers of nodes or of sets, with those below 0 as they are."""
        return np.concatenate(
            [
                np.where(getattr(part, name) < 0, getattr(part, name), getattr(part, name) + start).astype(np.int32)
                for part, start in zip(parts, starts, strict=False)
            ]
        )

    roots = [part.roots + start for part, start in zip(parts, node_starts, strict=False)]
    return Trees(
        feature=stacked("feature"),  # type: ignore[arg-type]
        threshold=stacked("threshold"),  # type: ignore[arg-type]
        left=moved("left", node_starts),
        right=moved("right", node_starts),
        missing_left=stacked("missing_left"),  # type: ignore[arg-type]
        categories=moved("categories", set_starts),
        left_codes=stacked("left_codes"),  # type: ignore[arg-type]
        value=stacked("value"),  # type: ignore[arg-type]
        cover=stacked("cover"),  # type: ignore[arg-type]
        roots=np.concatenate(roots, axis=axis).astype(np.int32),
    )


@njit(cache=True, nogil=True)
def _add_trees(  # type: ignore[no-untyped-def]  # compiled, and called with the arrays of Trees alone
    out, X, slot, feature, threshold, left, right, missing_left, categories, left_codes, value, roots
):
    outputs = value.shape[1]
    for row in range(X.shape[0]):
        if slot[row] < 0:
            continue
        for iteration in range(roots.shape[0]):
            node = roots[iteration, slot[row]]
            while feature[node] >= 0:
                x = X[row, feature[node]]
                if np.isnan(x):
                    goes_left = missing_left[node]
                elif categories[node] >= 0:
                    goes_left = left_codes[categories[node], int(x)]
                else:
                    goes_left = x <= threshold[node]
                node = left[node] if goes_left else right[node]
            for k in range(outputs):
                out[row, k] += value[node, k]
