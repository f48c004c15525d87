"""Which coefficient scales which entries of a model: the blocks of anisotropic scaling.

Shape legend: ``C`` coefficients of one task vector, blocks times partitions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from multitune.errors import MultituneError, nearest
from multitune.models.architecture import TensorPlace, architecture_index

Grouping = Literal["tensor", "all", "layer", "category", "layer and category"]
Shape = tuple[int, ...]


def _layer(place: TensorPlace) -> str:
    return f"{place.stack}.{place.layer}" if place.layer is not None else "outside"


GROUPINGS: dict[str, Callable[[TensorPlace], str]] = {
    "tensor": lambda place: place.name,
    "all": lambda place: "all",
    "layer": _layer,
    "category": lambda place: place.category,
    "layer and category": lambda place: f"{_layer(place)} {place.category}",
}
"""The label of the block that a tensor belongs to, by what is grouped."""


class Blocks:
    """A grouping of tensors into blocks, each of whose tensors' entries are dealt into K partitions at random.

    Column ``first_column[name] + k`` of the coefficients scales partition k of a tensor. Partitions of one tensor are
    disjoint, cover it, differ in size by one entry at most, and depend on the seed and the tensor's name alone: tensors
    of equal shape have partitions of their own.

    Args:
        shapes: of the tensors, by name.
        label_of: the block of every tensor.
        partitions: K.
        seed: of the partitions.

    Attributes:
        labels: of the blocks, in the order of their first tensors.
        columns: C.

    Raises:
        MultituneError: K below 1, no tensors.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], label_of: Mapping[str, str], partitions: int = 1, seed: int = 0
    ) -> None:
        if partitions < 1:
            raise MultituneError(
                f"A block cannot be dealt into {partitions} partitions.", "partitions", "Give 1 or more."
            )
        if not shapes:
            raise MultituneError(
                "There is no tensor to scale.", "task vectors", "Give vectors that change a tensor of the model."
            )
        self.shapes = dict(shapes)
        self.partitions = partitions
        self.seed = seed
        self.labels = tuple(dict.fromkeys(label_of[name] for name in shapes))
        place = {label: number for number, label in enumerate(self.labels)}
        self.first_column = {name: place[label_of[name]] * partitions for name in shapes}
        self.columns = len(self.labels) * partitions
        self._dealt: dict[str, Tensor] = {}

    def columns_of(self, name: str) -> slice:
        """Return the columns of a tensor."""
        first = self.first_column[name]
        return slice(first, first + self.partitions)

    def partition_of(self, name: str) -> Tensor:
        """Return for every entry of a tensor, in row-major order, the number of its partition, 0 to K - 1.

        Kept in the smallest integer type that holds K: of a few bytes per entry this is the price of K above 1.
        """
        if name not in self._dealt:
            entries = math.prod(self.shapes[name])
            digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            kind = torch.uint8 if self.partitions <= 2**8 else torch.int16 if self.partitions <= 2**15 else torch.int32
            self._dealt[name] = (torch.randperm(entries, generator=generator) % self.partitions).to(kind)
        return self._dealt[name]

    def spread(self, name: str, coefficients_K: Tensor) -> Tensor:
        """Return a tensor's coefficients: [] for one partition, else one per entry in the tensor's shape."""
        if self.partitions == 1:
            return coefficients_K[0]
        dealt = self.partition_of(name).to(coefficients_K.device).long()
        return coefficients_K[dealt].view(self.shapes[name])

    def gathered(self, name: str, products: Tensor) -> Tensor:
        """Return the sums [K] of a tensor's entries over its partitions: the transpose of ``spread``."""
        if self.partitions == 1:
            return products.sum().view(1)
        dealt = self.partition_of(name).to(products.device).long()
        return products.new_zeros(self.partitions).index_add_(0, dealt, products.flatten())


def blocks_of(
    shapes: Mapping[str, Shape],
    by: Grouping = "tensor",
    partitions: int = 1,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> Blocks:
    """Return the blocks of a model's tensors.

    Args:
        shapes: of the tensors that are scaled, by their names in the model.
        by: ``tensor``: every tensor a block (aTLAS); ``all``: one block (isotropic, task arithmetic's one coefficient
            per vector); by layer, by category (attention, feed-forward, norm, ...) or both, as ``models.architecture``
            reads them from names.
        partitions: K; above 1 this is aTLAS xK.
        config: the model's parsed config.json, where names alone do not tell.

    Raises:
        MultituneError: an unknown grouping, K below 1, no tensors.
    """
    if by not in GROUPINGS:
        raise MultituneError(
            f"There is no grouping '{by}'.{nearest(by, GROUPINGS)}", "blocks", f"Choose one of: {', '.join(GROUPINGS)}."
        )
    places = architecture_index(shapes, config)
    return Blocks(shapes, {name: GROUPINGS[by](places[name]) for name in shapes}, partitions, seed)
