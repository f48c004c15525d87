"""Which tasks to train together, from how alike they are.

    d_ij = 1 - a_ij,  a_ij the affinity within [-1, 1], 0 where it is undefined

Average linkage on d; the cut with the highest mean silhouette (Rousseeuw 1987), where tasks that stay alone count zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any, Literal

import numpy as np

from multitune.errors import MultituneError

TOGETHER = 0.5
"""With every pair's affinity at least this, all tasks are trained together."""

WORTH = 0.25
"""With a mean affinity below this, a group is no group: the others give a task too little of what its own data does."""

STRUCTURE = 0.25
"""Mean silhouette of the grouped tasks below which Kaufman & Rousseeuw (1990, chapter 2) see no structure."""

Affinity = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Grouping:
    """A suggestion: every task in one group, groups in the order of their first task.

    Attributes:
        advice: all tasks together, groups, or each alone.
        groups: the groups; one of one task is trained alone.
        reason: in a sentence, with the numbers that decided.
        silhouettes: mean silhouette by the number of groups, of the cuts that were compared.
    """

    advice: Literal["together", "groups", "alone"]
    groups: tuple[tuple[str, ...], ...]
    reason: str
    silhouettes: Mapping[int, float] = field(default_factory=dict)


def group(tasks: Sequence[str], affinity: Affinity) -> Grouping:
    """Return which tasks to train together.

    1. Every pair's affinity is at least TOGETHER: all together.
    2. Else the tree of average linkage is cut into 2, 3, ... groups; those with a mean affinity below WORTH fall
       apart; of the cuts that leave a group, the one with the highest mean silhouette, provided that the silhouettes
       of the tasks in its groups have a mean of at least STRUCTURE.
    3. Else all together where the mean affinity is at least WORTH, and each alone otherwise; so too where no affinity
       is defined at all.

    Args:
        tasks: two or more.
        affinity: symmetric; None where undefined.

    Raises:
        MultituneError: scikit-learn is not installed.
    """
    if all(affinity[one][other] is None for one, other in combinations(tasks, 2)):
        reason = "No task shows a gain from its own training, so nothing is known of sharing."
        return Grouping("alone", tuple((task,) for task in tasks), reason)
    a_NN = np.array([[affinity[one][other] or 0.0 for other in tasks] for one in tasks], dtype=float).clip(-1, 1)
    pairs = [a_NN[i, j] for i, j in combinations(range(len(tasks)), 2)]
    if min(pairs) >= TOGETHER:
        return Grouping("together", (tuple(tasks),), f"Every pair's affinity is at least {min(pairs):.2f}.")
    found = _best_cut(a_NN)
    if found is not None:
        labels, structure, silhouettes = found
        if structure >= STRUCTURE:
            groups = _named(tasks, labels)
            reason = f"Groups are apart: the silhouettes of grouped tasks have a mean of {structure:.2f}."
            return Grouping("groups", groups, reason, silhouettes)
    silhouettes = found[2] if found is not None else {}
    if fmean(pairs) >= WORTH:
        reason = f"No groups stand apart, and the mean affinity is {fmean(pairs):.2f}."
        return Grouping("together", (tuple(tasks),), reason, silhouettes)
    reason = f"No groups stand apart, and the mean affinity is {fmean(pairs):.2f}: too little to share."
    return Grouping("alone", tuple((task,) for task in tasks), reason, silhouettes)


def _best_cut(a_NN: np.ndarray) -> tuple[np.ndarray, float, dict[int, float]] | None:
    """Return the best cut's labels, the mean silhouette of its grouped tasks, and of every cut; None without any."""
    silhouette_samples, linkage, fcluster, squareform = clustering()
    d_NN = 1.0 - a_NN
    np.fill_diagonal(d_NN, 0.0)
    tree = linkage(squareform(d_NN, checks=False), method="average")
    best: tuple[np.ndarray, float] | None = None
    silhouettes: dict[int, float] = {}
    for count in range(2, len(a_NN)):
        labels = _without_weak_groups(fcluster(tree, count, criterion="maxclust"), a_NN)
        sizes = np.bincount(labels)
        grouped = sizes[labels] > 1
        groups = int((sizes > 0).sum())
        if not grouped.any() or groups < 2 or groups in silhouettes:
            continue
        s_N = silhouette_samples(d_NN, labels, metric="precomputed")
        if not silhouettes or s_N.mean() > max(silhouettes.values()) + 1e-12:
            best = labels, float(s_N[grouped].mean())
        silhouettes[groups] = float(s_N.mean())
    return None if best is None else (*best, silhouettes)


def _without_weak_groups(labels: np.ndarray, a_NN: np.ndarray) -> np.ndarray:
    """Return labels in which groups with a mean affinity below WORTH have fallen apart."""
    kept = labels.copy()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        pairs = [a_NN[i, j] for i, j in combinations(members, 2)]
        if pairs and fmean(pairs) < WORTH:
            kept[members] = labels.max() + 1 + members  # numbers that no group has
    return kept


def _named(tasks: Sequence[str], labels: np.ndarray) -> tuple[tuple[str, ...], ...]:
    groups: dict[int, list[str]] = {}
    for task, label in zip(tasks, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(task)
    return tuple(map(tuple, groups.values()))


def clustering() -> tuple[Any, Any, Any, Any]:
    """Return scikit-learn's silhouettes and SciPy's linkage, its cut, and the shape of distances it takes.

    Raises:
        MultituneError: they are not installed.
    """
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform
        from sklearn.metrics import silhouette_samples
    except ModuleNotFoundError as error:
        raise MultituneError(
            f"Grouping tasks needs {error.name}, which is not installed.",
            "multitune transfer",
            "Install it with `pip install 'multitune[tables]'`.",
        ) from None
    return silhouette_samples, linkage, fcluster, squareform
