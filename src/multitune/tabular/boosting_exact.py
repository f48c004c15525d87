"""The exact engine: every tree by scikit-learn, one after another. For comparison, not for speed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.tree import DecisionTreeRegressor

from multitune.tabular.boosting_trees import LEVELS, NO_CATEGORIES, Trees, side_by_side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TreeSettings:
    """How a tree is grown.

    Attributes:
        max_depth: levels of splits.
        min_samples_leaf: rows that a leaf has at least.
        l2: a leaf of weight W is shrunk by W / (W + l2).
    """

    max_depth: int
    min_samples_leaf: int = 1
    l2: float = 0.0


class ExactEngine:
    """Grows trees with scikit-learn's DecisionTreeRegressor, which splits between the values themselves.

    Args:
        X: (N, D), sorted by task, nan where missing; no categories. scikit-learn compares in float32.
        starts: (T + 1,), where the rows of each task begin.
        weight: (N,), above 0.
        seed: by which scikit-learn chooses between splits that are equally good.
    """

    def __init__(
        self, X: Floats, starts: npt.NDArray[np.intp], weight: Floats, settings: TreeSettings, seed: int
    ) -> None:
        self.X = X.astype(np.float32)
        self.starts, self.weight, self.settings, self.seed = starts, weight, settings, seed

    def pooled(self, *targets_NK: Floats) -> tuple[Trees, list[Floats]]:
        """Return a tree over all rows for each of the targets, and what each says of the training rows."""
        everything = slice(0, len(self.X))
        grown = [self._tree(target, everything) for target in targets_NK]
        return side_by_side([trees for trees, _ in grown]), [values for _, values in grown]

    def per_task(self, target_NK: Floats) -> tuple[Trees, Floats]:
        """Return a tree for every task over its own rows, and what it says of them."""
        slices = [slice(a, b) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]
        grown = [self._tree(target_NK, rows) for rows in slices]
        return side_by_side([trees for trees, _ in grown]), np.concatenate([values for _, values in grown])

    def _tree(self, target_NK: Floats, rows: slice) -> tuple[Trees, Floats]:
        regressor = DecisionTreeRegressor(
            max_depth=self.settings.max_depth,
            min_samples_leaf=self.settings.min_samples_leaf,
            random_state=self.seed,
        )
        tree = regressor.fit(self.X[rows], target_NK[rows], sample_weight=self.weight[rows]).tree_
        inner = tree.children_left >= 0
        cover = tree.weighted_n_node_samples.copy()
        value = tree.value[:, :, 0] * (cover / (cover + self.settings.l2))[:, None]
        trees = Trees(
            feature=np.where(inner, tree.feature, -1).astype(np.int32),
            threshold=np.where(inner, tree.threshold, 0.0),
            left=tree.children_left.astype(np.int32),
            right=tree.children_right.astype(np.int32),
            missing_left=tree.missing_go_to_left.astype(bool),
            categories=np.full(tree.node_count, NO_CATEGORIES, dtype=np.int32),
            left_codes=np.empty((0, LEVELS), dtype=bool),
            value=value,
            cover=cover,
            roots=np.zeros((1, 1), dtype=np.int32),
        )
        return trees, value[tree.apply(self.X[rows])]
