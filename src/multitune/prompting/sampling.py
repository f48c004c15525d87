"""Few-shot splits: K rows of every class to learn from, K others to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multitune.errors import MultituneError
from multitune.mixing.shuffling import permuted, seed_of


def k_shot(labels: Sequence[Any], k: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of K rows per class for training and of K others for development, each in ascending order.

    Args:
        labels: of all rows; for a regression say on which side of the middle each value lies.
        k: rows per class and part.
        seed: the same seed gives the same rows.

    Raises:
        MultituneError: a class has fewer than 2 K rows.
    """
    train: list[int] = []
    development: list[int] = []
    for label in sorted({str(label) for label in labels}):
        places = [place for place, each in enumerate(labels) if str(each) == label]
        if len(places) < 2 * k:
            raise MultituneError(
                f"The label '{label}' has {len(places)} rows, and {2 * k} are needed.",
                f"{k} rows per class for training and {k} for development",
                "Ask for fewer rows per class, or give more labelled rows.",
            )
        drawn = [places[place] for place in _order(len(places), seed_of("k-shot", label, seed))[: 2 * k]]
        train += drawn[:k]
        development += drawn[k:]
    return sorted(train), sorted(development)


def split(rows: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of rows in two parts, the second of about ``share``, each in ascending order.

    Both parts get a row where there are two.
    """
    order = _order(rows, seed_of("split", seed))
    cut = min(rows - 1, max(1, round(share * rows))) if rows > 1 else 0
    return sorted(order[cut:]), sorted(order[:cut])


def _order(rows: int, key: int) -> list[int]:
    """Return 0 to rows - 1 in the order of a key, the same under every version of NumPy."""
    place = np.arange(rows)
    order: list[int] = permuted(place, np.full(rows, rows), np.full(rows, key, dtype=np.uint64)).tolist()
    return order
