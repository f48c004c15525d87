"""The two losses that are boosted, with what the trees are fitted to: the negative gradient.

Shape legend: ``N`` rows, ``K`` outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SquaredLoss:
    """L = 1/2 sum_k (y_k - F_k)^2."""

    def residual(self, y_NK: Floats, F_NK: Floats) -> Floats:
        """Return -dL/dF = y - F."""
        return y_NK - F_NK

    def loss(self, y_NK: Floats, F_NK: Floats) -> Floats:
        """Return L of every row, (N,)."""
        residual_NK = y_NK - F_NK
        return np.asarray(0.5 * np.einsum("nk,nk->n", residual_NK, residual_NK))


@dataclass(frozen=True)
class SoftmaxLoss:
    """L = -sum_k y_k F_k + log sum_k exp F_k, with y one-hot; two columns for two classes."""

    def residual(self, y_NK: Floats, F_NK: Floats) -> Floats:
        """Return -dL/dF = y - softmax(F)."""
        return y_NK - softmax(F_NK)

    def loss(self, y_NK: Floats, F_NK: Floats) -> Floats:
        """Return L of every row, (N,)."""
        most_N = F_NK.max(axis=1)
        return np.asarray(np.log(np.exp(F_NK - most_N[:, None]).sum(axis=1)) + most_N - (y_NK * F_NK).sum(axis=1))


Loss = SquaredLoss | SoftmaxLoss


def softmax(F_NK: Floats) -> Floats:
    """Return exp F / sum_k exp F."""
    exponential = np.exp(F_NK - F_NK.max(axis=1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))
