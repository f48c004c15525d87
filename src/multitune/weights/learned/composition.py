"""The composed model theta = base + sum over vectors of coefficients * task vector, and its derivative.

theta^(j) = theta_0^(j) + sum_i lam_i^(j) tau_i^(j), and dL/dlam_i^(j) = <dL/dtheta^(j), tau_i^(j)>
(aTLAS, arXiv 2407.02880). With one block this is task arithmetic, with coefficients by depth LiNeS.

Shape legend: ``N`` task vectors, ``C`` coefficients of each (blocks times ``K`` partitions), ``P`` pairs of tensor and
vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError, nearest
from multitune.weights.learned.blocks import Blocks, Grouping, blocks_of
from multitune.weights.learned.vectors import TaskVector, exact


@dataclass(frozen=True)
class Composition:
    """Task vectors over one base.

    Attributes:
        base: the pretrained tensors that any vector changes, by their names in the model.
        vectors: N of them.
        names: for every vector, the model's name of a tensor -> the vector's own name of it.
        blocks: which coefficient scales what.
        chosen_NC: which coefficients may differ from zero; None: all.
    """

    base: Mapping[str, Tensor]
    vectors: Sequence[TaskVector]
    names: Sequence[Mapping[str, str]]
    blocks: Blocks
    chosen_NC: Tensor | None = None

    @property
    def parameters(self) -> int:
        """Number of coefficients that are learned."""
        return len(self.vectors) * self.blocks.columns if self.chosen_NC is None else int(self.chosen_NC.sum())

    @cached_property
    def moving(self) -> dict[str, list[tuple[int, TaskVector, str]]]:
        """For every tensor the vectors that may change it: number, vector, the vector's name of the tensor."""
        return {
            name: [
                (number, vector, own[name])
                for number, (vector, own) in enumerate(zip(self.vectors, self.names, strict=True))
                if name in own and self._may_move(number, name)
            ]
            for name in self.base
        }

    def _may_move(self, number: int, name: str) -> bool:
        return self.chosen_NC is None or bool(self.chosen_NC[number, self.blocks.columns_of(name)].any())

    def start(self, value: float = 0.0) -> Tensor:
        """Return coefficients [N, C] of one value, float64, zero where none may be."""
        lam_NC = torch.full((len(self.vectors), self.blocks.columns), value, dtype=torch.float64)
        return lam_NC if self.chosen_NC is None else lam_NC * self.chosen_NC

    def tensor(self, name: str, lam_NC: Tensor) -> Tensor:
        """Return one composed tensor in float32 (float64 for float64 weights); differentiable in the coefficients."""
        base = self.base[name]
        theta = base.to(exact(base.dtype))
        for number, vector, own in self.moving[name]:
            lam_K = lam_NC[number, self.blocks.columns_of(name)].to(theta)
            theta = theta + self.blocks.spread(name, lam_K) * vector.delta(own, theta)
        return theta

    def tensors(self, lam_NC: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every composed tensor, rounded once to the base's type."""
        for name, base in self.base.items():
            yield name, self.tensor(name, lam_NC).to(base.dtype)

    def add_to(self, name: str, tensor: Tensor, change_NC: Tensor) -> None:
        """Add what a change of the coefficients changes in one tensor, in place."""
        for number, vector, own in self.moving[name]:
            change_K = change_NC[number, self.blocks.columns_of(name)]
            if self.blocks.partitions == 1:
                vector.add_to(own, tensor, float(change_K))
            else:
                tensor.addcmul_(self.blocks.spread(name, change_K.to(tensor)), vector.delta(own, tensor))

    def inner_products(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return dL/dlam [N, C], in float64, from the gradients of the loss in the composed tensors."""
        products_NC = self.start()
        found = [(name, *moving) for name in gradients for moving in self.moving[name]]
        if not found:
            return products_NC
        partitions = self.blocks.partitions
        one = next(iter(gradients.values()))
        # filled in place: small tensors that are kept would lie between the freed deltas and hold their memory
        sums_PK = torch.zeros(len(found), partitions, device=one.device, dtype=exact(one.dtype))
        first_P = [number * self.blocks.columns + self.blocks.first_column[name] for name, number, _, _ in found]
        for row, (name, _, vector, own) in enumerate(found):
            gradient = gradients[name]
            if partitions == 1:
                sums_PK[row, 0] = vector.inner(own, gradient)
            else:
                delta = vector.delta(own, gradient)
                sums_PK[row] = self.blocks.gathered(name, gradient.to(delta.dtype) * delta)
        place_PK = torch.tensor(first_P)[:, None] + torch.arange(partitions)
        products_NC.view(-1).index_add_(0, place_PK.flatten(), sums_PK.cpu().double().flatten())
        return products_NC if self.chosen_NC is None else products_NC * self.chosen_NC


def composed(
    model: nn.Module,
    vectors: Sequence[TaskVector],
    by: Grouping = "tensor",
    partitions: int = 1,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    base: Mapping[str, Tensor] | None = None,
    chosen_NC: Tensor | None = None,
) -> Composition:
    """Return the composition of task vectors over a model, matched by name.

    Buffers are left out, and tensors that are tied in the model count once, whichever of their names a vector uses.

    Args:
        model: the pretrained model.
        by, partitions, seed, config: see ``blocks_of``.
        base: the pretrained weights under the model's names. Memory-mapped, they spare the second copy of the weights
            that learning otherwise holds; vectors then must not subtract the model's own tensors. None: the model's.
        chosen_NC: see ``Composition``; ``selection`` makes them.

    Raises:
        MultituneError: no vectors, a tensor that the model does not have or has in another shape, K below 1.
    """
    if not vectors:
        raise MultituneError("There is no task vector to compose.", "task vectors", "Give at least one.")
    parameters = dict(model.named_parameters())
    names = [_matched(model, vector, f"task vector {number + 1}") for number, vector in enumerate(vectors)]
    changed = {name: tuple(p.shape) for name, p in parameters.items() if any(name in own for own in names)}
    blocks = blocks_of(changed, by, partitions, seed=seed, config=config)
    if chosen_NC is not None and tuple(chosen_NC.shape) != (len(vectors), blocks.columns):
        raise MultituneError(
            f"The selection has shape {list(chosen_NC.shape)}, the coefficients {[len(vectors), blocks.columns]}.",
            "chosen_NC",
            "Select among these vectors and these blocks.",
        )
    kept = {name: parameters[name].detach() for name in changed} if base is None else base
    if missing := [name for name in changed if name not in kept]:
        raise MultituneError(
            f"The base has no tensor '{missing[0]}'.", "base", "Give the pretrained weights under the model's names."
        )
    return Composition({name: kept[name] for name in changed}, vectors, names, blocks, chosen_NC)


def _matched(model: nn.Module, vector: TaskVector, where: str) -> dict[str, str]:
    """Return the model's name of every tensor that a vector changes -> the vector's own name of it."""
    first_names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_names.setdefault(id(parameter), name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in model.named_buffers()}
    matched: dict[str, str] = {}
    for own, shape in vector.shapes.items():
        if own not in parameters:
            if own in buffers:
                continue
            raise MultituneError(
                f"The model has no tensor '{own}'.{nearest(own, parameters)}",
                where,
                "Give vectors under the model's own names; without heads that it does not have.",
            )
        if tuple(parameters[own].shape) != tuple(shape):
            raise MultituneError(
                f"'{own}' has shape {list(shape)}, in the model {list(parameters[own].shape)}.",
                where,
                "Give vectors of models that were tuned from this one.",
            )
        matched.setdefault(first_names[id(parameters[own])], own)
    return matched
