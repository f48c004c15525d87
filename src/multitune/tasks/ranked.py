"""Several answers to one example: whether the right one is among the first k, or among k drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def exact_match_at(k: int, predictions: Sequence[Sequence[str]], references: Sequence[str]) -> np.ndarray:
    """1 where the reference is among the first k different predictions, else 0; float64 [N].

    Texts are compared without white space around them. A prediction that says what one before it said takes no rank:
    beams that differ in what follows the stop string alone are one answer. This depends on ranks, unlike `pass_at`.

    Args:
        k: at least 1.
        predictions: of every example, the best first; there may be fewer than k.
        references: one per example.

    Raises:
        ValueError: k is 0, or the lists have different lengths or none.
    """
    if k < 1:
        raise ValueError(f"k is {k}; the first prediction is k = 1")
    if len(predictions) != len(references) or not references:
        raise ValueError(f"{len(predictions)} lists of predictions do not go with {len(references)} references")
    hits = []
    for ranked, reference in zip(predictions, references, strict=True):
        different = list(dict.fromkeys(text.strip() for text in ranked))
        hits.append(reference.strip() in different[:k])
    return np.array(hits, dtype=np.float64)


def pass_at(k: int, samples: int, passed: int) -> float:
    """Return the unbiased chance that one of k samples passes: 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, eq. 1).

    As a product of ratios, 1 - prod_{i = n-c+1..n} (1 - k / i), in which no number is large.

    Args:
        k: samples that are looked at.
        samples: n, those that were drawn and run.
        passed: c, those of them that passed.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    n, c = samples, passed
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@{k} of {passed} passed among {samples} samples is not defined")
    if n - c < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))
