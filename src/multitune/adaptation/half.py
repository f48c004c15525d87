"""Half fine-tuning: freezes the half of a model that a round leaves out, and says on disk which half that was."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.adaptation.half_config import HalfConfig
from multitune.adaptation.half_selection import frozen_half
from multitune.errors import MultituneError
from multitune.models.architecture import TensorPlace, architecture_index

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger("multitune.adaptation")

MANIFEST_FILE = "half.json"


@dataclass(frozen=True)
class HalfRound:
    """One round of half fine-tuning: what a training of a model trains and what it leaves.

    Attributes:
        config: the rule.
        seed: of the run.
        round: which training of this model it is, from 1.
        epoch: within the round, where halves are drawn again at every epoch; else 0.
        places: of the parameters that may train (tied ones once; what was frozen before is not among them).
        sizes: number of elements of each.
        frozen: names of those that stay as they are.
    """

    config: HalfConfig
    seed: int
    round: int
    epoch: int
    places: Mapping[str, TensorPlace]
    sizes: Mapping[str, int]
    frozen: frozenset[str]

    @property
    def trainable(self) -> int:
        """Number of parameters that train."""
        return sum(size for name, size in self.sizes.items() if name not in self.frozen)

    @property
    def parameters(self) -> int:
        """Number of the parameters that may train."""
        return sum(self.sizes.values())

    def shares(self) -> dict[str, float]:
        """Return by category which share of its parameters inside the layers trains, and of all as ``all``."""
        total: Counter[str] = Counter()
        trained: Counter[str] = Counter()
        for name, place in self.places.items():
            if place.layer is not None:
                total[place.category] += self.sizes[name]
                trained[place.category] += self.sizes[name] if name not in self.frozen else 0
        shares = {category: trained[category] / total[category] for category in sorted(total)}
        return shares | {"all": self.trainable / self.parameters}

    def manifest(self) -> dict[str, Any]:
        """Return what `half.json` holds: enough to freeze the same half without drawing it again."""
        return {
            "method": "half",
            **self.config.model_dump(mode="json"),
            "seed": self.seed,
            "round": self.round,
            "trainable_parameters": self.trainable,
            "parameters": self.parameters,
            "shares": {name: round(share, 6) for name, share in self.shares().items()},
            self._frozen_key: sorted(self.frozen),
        }

    @property
    def _frozen_key(self) -> str:
        """What the manifest calls the frozen tensors: those of the first epoch where every epoch draws anew."""
        return "frozen" if self.config.resample == "run" else "frozen_in_first_epoch"


def half_round(model: nn.Module, config: HalfConfig, *, seed: int, round: int = 1, epoch: int = 0) -> HalfRound:
    """Draw the half that a round freezes; the model stays as it is, and may be on the meta device.

    Args:
        model: any module with numbered layers; what requires no gradient now stays out of the count.
        config: the rule.
        seed: of the run; the same seed, round and epoch draw the same half on every machine.
        round: which training of this model it is, from 1.
        epoch: within the round.

    Raises:
        MultituneError: the model has no numbered layers.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    places = architecture_index(shapes)
    if not any(place.layer is not None for place in places.values()):
        raise MultituneError(
            f"{type(model).__name__} has no numbered layers of which a half could be frozen.",
            "adapt.method: half",
            "Choose another method, or a model whose layers stand in a list.",
        )
    frozen = frozen_half(places, sizes, config, seed=seed, round=round, epoch=epoch)
    return HalfRound(config, seed, round, epoch, places, sizes, frozen)


def at_epoch(half: HalfRound, epoch: int) -> HalfRound:
    """Return the round as it stands at an epoch: drawn again where the rule says so, else as it is."""
    if half.config.resample == "run" or epoch == half.epoch:
        return half
    frozen = frozen_half(half.places, half.sizes, half.config, seed=half.seed, round=half.round, epoch=epoch)
    return dataclasses.replace(half, epoch=epoch, frozen=frozen)


def freeze(model: nn.Module, half: HalfRound) -> None:
    """Let exactly the round's half require gradients, and drop the gradients of the rest.

    Do it before the optimiser is made: weight decay and momentum move what an optimiser knows, gradient or not.
    """
    parameters = dict(model.named_parameters())
    for name in half.sizes:
        parameters[name].requires_grad_(name not in half.frozen)
        if name in half.frozen:
            parameters[name].grad = None


def say(half: HalfRound) -> None:
    """Log what trains. With grouped-query attention half of the matrices is not half of the parameters."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in half.shares().items() if name != "all")
    logger.info(
        "half fine-tuning, round %d: %s of %s parameters train (%.2f%%); inside the layers %s",
        half.round,
        f"{half.trainable:,}",
        f"{half.parameters:,}",
        100 * half.trainable / half.parameters,
        shares,
    )


def write_manifest(half: HalfRound, folder: Path) -> None:
    """Write ``half.json`` into a folder, in one piece."""
    temporary = folder / f"{MANIFEST_FILE}.partial"
    temporary.write_text(json.dumps(half.manifest(), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST_FILE)


def from_manifest(half: HalfRound, file: Path) -> HalfRound:
    """Return the round with the half that its manifest names, should another version of this package draw another.

    Args:
        half: as drawn now.
        file: a manifest; where there is none, or it is of another round, the drawn one stands.

    Raises:
        MultituneError: the manifest names tensors that the model does not have.
    """
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return half
    drawn = half.manifest()
    same = all(written.get(key) == drawn[key] for key in (*HalfConfig.model_fields, "seed", "round"))
    if not same or half._frozen_key not in written:
        return half
    names = written[half._frozen_key]
    if unknown := sorted(set(names) - set(half.sizes)):
        raise MultituneError(
            f"The manifest freezes '{unknown[0]}', which the model does not have.",
            str(file),
            "Remove the file and its checkpoints to begin the step anew.",
        )
    return dataclasses.replace(half, frozen=frozenset(names))
