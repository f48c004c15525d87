"""Which half of a model stays frozen: a pure function of names, shapes, seed and round. Needs no torch.

A *unit* is a matrix with its bias, or a norm; fused matrices (``qkv``, ``gate_up``, all experts in one tensor) are one
unit each. Units outside the layers (embeddings, head, final norm) and those that the architecture index calls ``other``
outside always train. Units of one category are drawn together, and apart from them those of cross-attention, of every
expert, and of every stack.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

from multitune.adaptation.half_config import HalfConfig
from multitune.models.architecture import TensorPlace

T = TypeVar("T")

SUBSETS_UP_TO = 10
"""Units of one kind in one layer whose subsets are all compared for ``balance: params``; more are drawn greedily."""


def frozen_half(
    places: Mapping[str, TensorPlace],
    sizes: Mapping[str, int],
    config: HalfConfig,
    *,
    seed: int,
    round: int,
    epoch: int = 0,
) -> frozenset[str]:
    """Return the names of the tensors that stay frozen in a round (arXiv 2404.18466, section 3).

    With n units of a category in L layers, F = round((1 - p) n), ties down: floor(F / L) of every layer and one more in
    F mod L random layers. For p = 0.5 these are 2 of the 4 attention matrices, 1 of the 2 norms, and of the 3
    feed-forward matrices 2 in floor(L / 2) random layers and 1 in the others. Layers with different numbers of units
    are counted apart.

    Args:
        places: of the parameters, tied ones once.
        sizes: number of elements of every tensor.
        config: fraction, granularity and balance.
        seed: of the run.
        round: which training of this model it is, from 1; each draws anew.
        epoch: draws anew within a round.
    """
    from multitune.mixing.shuffling import seed_of  # loads NumPy, which the registry of methods does without

    frozen: set[str] = set()
    for kind, units in sorted(_kinds(places, config).items()):
        draw = random.Random(seed_of("half", seed, round, epoch, *kind))
        weights = {unit: sum(sizes[name] for name in names) for unit, names in units.items()}
        if config.granularity == "category":
            chosen = _by_layer(_layers_of(units, places), weights, config, draw)
        elif config.balance == "params":
            chosen = _nearest(sorted(units), weights, (1 - config.fraction) * sum(weights.values()), draw)
        else:
            chosen = _some(sorted(units), _frozen_count(config, len(units)), draw)
        frozen.update(name for unit in chosen for name in units[unit])
    return frozenset(frozen)


def _kinds(places: Mapping[str, TensorPlace], config: HalfConfig) -> dict[tuple[str, ...], dict[str, list[str]]]:
    """Return what is drawn together: kind -> unit -> names. A whole layer is the unit of the layer granularity."""
    kinds: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(places):
        place = places[name]
        if place.layer is None:
            continue
        if config.granularity == "layer":
            kinds[("layer", place.stack)][f"{place.stack}.{place.layer:06}"].append(name)
        elif config.granularity == "model":
            kinds[("norm" if place.category == "norm" else "matrix",)][place.unit].append(name)
        else:
            kinds[(place.category, place.stack, place.group)][place.unit].append(name)
    return kinds


def _layers_of(units: Mapping[str, Sequence[str]], places: Mapping[str, TensorPlace]) -> list[list[str]]:
    """Return the units of every layer that has some, in the order of depth."""
    layers: dict[int, list[str]] = defaultdict(list)
    for unit in sorted(units):
        layer = places[units[unit][0]].layer
        assert layer is not None
        layers[layer].append(unit)
    return [layers[layer] for layer in sorted(layers)]


def _by_layer(
    layers: list[list[str]], weights: Mapping[str, int], config: HalfConfig, draw: random.Random
) -> list[str]:
    """Freeze the same number of every layer as nearly as can be, or of parameters over the layers so far."""
    chosen: list[str] = []
    if config.balance == "params":
        target = frozen = 0.0
        for layer in _some(list(range(len(layers))), len(layers), draw):
            target += (1 - config.fraction) * sum(weights[unit] for unit in layers[layer])
            taken = _nearest(layers[layer], weights, target - frozen, draw)
            frozen += sum(weights[unit] for unit in taken)
            chosen += taken
        return chosen
    for units_per_layer in sorted({len(layer) for layer in layers}):
        alike = [layer for layer in layers if len(layer) == units_per_layer]
        count = _frozen_count(config, len(alike) * units_per_layer)
        more = set(_some(list(range(len(alike))), count % len(alike), draw))
        for place, units in enumerate(alike):
            chosen += _some(units, count // len(alike) + (place in more), draw)
    return chosen


def _frozen_count(config: HalfConfig, units: int) -> int:
    """Return round((1 - p) n), ties down, as the paper's rule does for an odd number of layers."""
    return max(0, math.ceil((1 - config.fraction) * units - 0.5 - 1e-9))


def _some(units: Sequence[T], count: int, draw: random.Random) -> list[T]:
    """Draw some units at random. Only ``random()`` itself promises the same numbers in every version of Python."""
    keys = [draw.random() for _ in units]
    return [units[place] for place in sorted(range(len(units)), key=keys.__getitem__)[:count]]


def _nearest(units: list[str], weights: Mapping[str, int], target: float, draw: random.Random) -> list[str]:
    """Return units whose parameters come nearest to a number; at random among those that come equally near."""
    if len(units) > SUBSETS_UP_TO:
        taken: list[str] = []
        for unit in _some(units, len(units), draw):
            left = target - sum(weights[one] for one in taken)
            if abs(left - weights[unit]) < abs(left):
                taken.append(unit)
        return taken
    subsets = [list(some) for count in range(len(units) + 1) for some in combinations(units, count)]
    distances = [abs(target - sum(weights[unit] for unit in subset)) for subset in subsets]
    near = min(distances) + 1e-6 * max(1.0, abs(target))
    return _some([subset for subset, d in zip(subsets, distances, strict=True) if d <= near], 1, draw)[0]
