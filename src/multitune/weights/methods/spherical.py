"""Interpolation on spheres, and Model Stock: methods whose coefficients follow from the models' inner products.

Their results lie in the span of the models, so that a pass over the tensor for the inner products G_st = <x_s, x_t>
gives coefficients, and the merge is a weighted sum.

Legend: T models, n entries of a piece. base [n]; deltas [T, n], overwritten; gram [T, T], float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import acos, fsum, sin, sqrt
from typing import Any

import numpy as np
import torch

from multitune.weights.methods.layer import Layer
from multitune.weights.methods.sums import factors, weighted_sum
from multitune.weights.streaming import Stream, partial_sums

PARALLEL = 0.9995
"""From this cosine on, two models are interpolated linearly."""

SMALL = 1e-8


def slerp(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return the point at ``t`` on the great circle between two models, their lengths interpolated with it.

    W = sin((1 - t) phi) / sin(phi) theta_1 + sin(t phi) / sin(phi) theta_2, cos(phi) = <theta_1, theta_2> /
    |theta_1| |theta_2|; linear where the models are nearly parallel (Shoemake 1985). ``base`` is zero.
    """
    return base + weighted_sum(deltas, slerp_coefficients(layer.statistics, parameters["t"]))


def slerp_coefficients(gram: np.ndarray, t: float) -> list[float]:
    lengths = [sqrt(max(gram[i, i], 0.0)) for i in (0, 1)]
    product = lengths[0] * lengths[1]
    cosine = float(np.clip(gram[0, 1] / product, -1, 1)) if min(lengths) > SMALL else 0.0
    if abs(cosine) > PARALLEL:
        return [1 - t, t]
    phi = acos(cosine)
    return [sin((1 - t) * phi) / sin(phi), sin(t * phi) / sin(phi)]


def multislerp(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return base + the weighted mean of directions on the sphere, times the weighted mean length.

    With units u_t = delta_t / |delta_t|, mean m = sum w_t u_t / |sum w_t u_t|, tangents v_t = u_t - <u_t, m> m and
    v = sum w_t v_t: W = base + (cos|v| m + sin|v| / |v| v) sum w_t |delta_t|. Directions whose mean is zero (two
    antipodes with equal weights) have no mean on the sphere; they are averaged linearly.
    """
    return base + weighted_sum(deltas, multislerp_coefficients(layer.statistics, np.array(factors(parameters))))


def multislerp_coefficients(gram: np.ndarray, weights: np.ndarray) -> list[float]:
    """Return the coefficients of the deltas; everything is written in the basis of the units u_t."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    products = gram / np.outer(lengths + SMALL, lengths + SMALL)  # <u_s, u_t>

    def length(vector: np.ndarray) -> float:
        return sqrt(max(float(vector @ products @ vector), 0.0))

    if length(weights) < SMALL:
        return [float(weight) for weight in weights]
    mean = weights / length(weights)
    along = products @ mean  # <u_t, m>
    tangent = weights - float(weights @ along) * mean
    size = length(tangent) + SMALL
    direction = np.cos(size) * mean + np.sin(size) / size * tangent
    return [float(each) for each in direction * float(weights @ lengths) / (lengths + SMALL)]


def model_stock(base: torch.Tensor, deltas: torch.Tensor, parameters: Mapping[str, Any], layer: Layer) -> torch.Tensor:
    """Return the point between base and mean of the models that is nearest to their centre (arXiv 2403.19522).

    W = r mean_t theta_t + (1 - r) base, r = T cos / (1 + (T - 1) cos), cos the mean cosine of two task vectors of this
    tensor, r = 0 where the denominator vanishes.
    """
    count = len(deltas)
    return base + weighted_sum(deltas, [stock_ratio(layer.statistics) / count] * count)


def stock_ratio(gram: np.ndarray) -> float:
    count = len(gram)
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    cosines = np.clip(gram / np.maximum(np.outer(lengths, lengths), 1e-6), -1, 1)
    cosine = float(cosines[np.triu_indices(count, 1)].mean())
    denominator = 1 + (count - 1) * cosine
    return count * cosine / denominator if abs(denominator) >= 1e-6 else 0.0


def find_gram(stream: Stream, parameters: Mapping[str, Any], layer: Layer) -> np.ndarray:
    """Find the inner products of the deltas, exactly rounded sums of blocks."""
    count = len(stream.models)
    sums: dict[tuple[int, int], list[float]] = {(s, t): [] for s in range(count) for t in range(s, count)}
    for chunk in stream:
        for (s, t), parts in sums.items():
            parts += partial_sums(chunk.deltas[s] * chunk.deltas[t], stream.unit)
    gram = np.empty((count, count))
    for (s, t), parts in sums.items():
        gram[s, t] = gram[t, s] = fsum(parts)
    return gram
