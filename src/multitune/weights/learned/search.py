"""Coefficients by search: covariance matrix adaptation over any score, for what no gradient reaches.

Shape legend: ``N`` task vectors, ``C`` coefficients of each.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import nn

from multitune.errors import MultituneError
from multitune.weights.learned.composition import Composition
from multitune.weights.learned.learning import Learned
from multitune.weights.learned.routes import Forward, routed


@dataclass(frozen=True)
class Found:
    """The best point of a search.

    Attributes:
        point: its coordinates.
        score: what it scored.
        tried: scores of all points in the order in which they were tried, the start first.
    """

    point: list[float]
    score: float
    tried: list[float]


def search(
    score: Callable[[list[float]], float],
    start: Sequence[float],
    *,
    evaluations: int,
    spread: float = 0.3,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Found:
    """Maximise a score over numbers by CMA-ES (Hansen, arXiv 1604.00772; pycma does it).

    The start is scored first, so that the result is never worse. Score on validation rows: what is picked by its score
    is flattered by it.

    Args:
        score: coordinates -> number, larger is better; minus infinity: not admissible.
        start: where to begin, one number or more.
        evaluations: how often the score may be asked, the start included; a search that has converged asks less.
        spread: standard deviation of the first steps; in units of the coordinates, which should be alike in scale.
        bounds: lowest and highest value of every coordinate.
        seed: of the search.

    Raises:
        MultituneError: no coordinate, no evaluation, a start out of bounds, a score that is no number.
    """
    low, high = bounds or (-math.inf, math.inf)
    if not start or evaluations < 1 or not all(low <= one <= high for one in start):
        raise MultituneError(
            f"{evaluations} evaluations from {list(start)[:4]} within {low:g} to {high:g} are no search.",
            "search",
            "Give a start within the bounds, and at least one evaluation.",
        )
    tried = [_number(score(list(start)))]
    best, best_score = list(start), tried[0]
    padding = list(start) * (len(start) == 1)  # pycma needs two coordinates; the score never sees the second
    generator = np.random.default_rng(seed)
    options = {
        "seed": math.nan,  # NumPy's global generator is neither seeded nor read
        "randn": lambda *shape: generator.standard_normal(shape),
        "verbose": -9,
        "verb_log": 0,
        "bounds": [None if bounds is None else low, None if bounds is None else high],
        "CMA_diagonal": 0 if len(start) <= 100 else True,  # full covariances of many coordinates cost their square
    }
    strategy = _pycma().CMAEvolutionStrategy([*start, *padding], spread, options)
    while len(tried) < evaluations:
        points = strategy.ask(min(strategy.popsize, evaluations - len(tried)))
        scores = [_number(score([float(one) for one in point[: len(start)]])) for point in points]
        tried += scores
        for point, value in zip(points, scores, strict=True):
            if value > best_score:
                best, best_score = [float(one) for one in point[: len(start)]], value
        if len(points) < strategy.popsize:
            break  # the last, incomplete generation has nothing more to teach
        strategy.tell(points, [-value if math.isfinite(value) else 1e30 for value in scores])
        if strategy.stop():
            break
    return Found(best, best_score, tried)


def _pycma() -> ModuleType:
    """Import pycma, which warns at its first import when it cannot draw (4.5): drawing is not asked for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return importlib.import_module("cma")
    except ImportError:
        raise MultituneError(
            "Searching coefficients needs pycma.", "search", "Install it: pip install multitune[search]."
        ) from None


def search_coefficients(
    model: nn.Module,
    composition: Composition,
    evaluate: Callable[[Forward], float],
    *,
    evaluations: int,
    start: float = 0.0,
    spread: float = 0.3,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Learned:
    """Search the coefficients of a composition that score best: aTLAS without gradients, isotropic or not.

    Args:
        model: holds the pretrained weights; comes back unmoved.
        composition: see ``composed``; ``by="all"`` has one coefficient per vector, where search is at its best.
        evaluate: the composed model -> score, larger is better.
        evaluations, spread, bounds, seed: see ``search``.
        start: of every coefficient.
    """
    lam_NC = composition.start(start)
    free_NC = torch.ones_like(lam_NC, dtype=torch.bool) if composition.chosen_NC is None else composition.chosen_NC

    def placed(point: list[float]) -> torch.Tensor:
        return lam_NC.masked_scatter(free_NC, torch.from_numpy(np.asarray(point, dtype=np.float64)))

    with routed("streamed", model, composition) as route, torch.no_grad():
        found = search(
            lambda point: evaluate(route.at(placed(point))),
            [start] * int(free_NC.sum()),
            evaluations=evaluations,
            spread=spread,
            bounds=bounds,
            seed=seed,
        )
    return Learned(placed(found.point), composition, 0, found.tried)


def _number(value: float) -> float:
    value = float(value)
    if math.isnan(value):
        raise MultituneError("The score of a point is NaN.", "search", "Return a number, or minus infinity.")
    return value
