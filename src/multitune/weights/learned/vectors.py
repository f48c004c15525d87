"""Task vectors: what fine-tuning changed, read tensor by tensor and never held all at once.

A dense vector is a function from names to tensors, so that the weights may stay memory-mapped on disk. A factored one
is scale * left @ right per matrix, as LoRA stores it, and is never multiplied out where the factors suffice.

Shape legend: ``R`` rank, ``O`` rows and ``I`` columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from multitune.errors import MultituneError

Shape = tuple[int, ...]


class TaskVector(Protocol):
    """What one fine-tuning changed.

    Attributes:
        shapes: of the tensors that it changes, by name; on all others it is zero.
    """

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def delta(self, name: str, like: Tensor) -> Tensor:
        """Return the change of one tensor, dense, on the device of ``like`` and in the precision of ``exact``."""

    def inner(self, name: str, gradient: Tensor) -> Tensor:
        """Return <gradient, delta> []: the derivative of a loss in the coefficient of this tensor's change."""

    def add_to(self, name: str, tensor: Tensor, coefficient: float) -> None:
        """Add coefficient * delta to a tensor in place."""


def exact(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which changes are computed: float32, and float64 for float64 weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class DenseVector:
    """Changes that are read as whole tensors.

    Attributes:
        shapes: by name.
        read: name -> the change, in any floating type.
    """

    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]

    def delta(self, name: str, like: Tensor) -> Tensor:
        """Return the change of one tensor."""
        return self.read(name).to(device=like.device, dtype=exact(like.dtype))

    def inner(self, name: str, gradient: Tensor) -> Tensor:
        """Return <gradient, delta> []."""
        delta = self.delta(name, gradient)
        return torch.dot(gradient.to(delta.dtype).flatten(), delta.flatten())

    def add_to(self, name: str, tensor: Tensor, coefficient: float) -> None:
        """Add coefficient * delta to a tensor in place."""
        tensor.add_(self.delta(name, tensor), alpha=coefficient)


@dataclass(frozen=True)
class FactoredVector:
    """Changes of matrices as scale * left [O, R] @ right [R, I]: for LoRA, left is B and right is A.

    Attributes:
        factors: name -> (left, right, scale).
    """

    factors: Mapping[str, tuple[Tensor, Tensor, float]]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shapes of the products."""
        return {name: (left.shape[0], right.shape[1]) for name, (left, right, _) in self.factors.items()}

    def delta(self, name: str, like: Tensor) -> Tensor:
        """Return the change of one matrix, multiplied out."""
        left_OR, right_RI, scale = self._factors(name, like)
        return scale * left_OR @ right_RI

    def inner(self, name: str, gradient: Tensor) -> Tensor:
        """Return s <B^T G, A> [], without multiplying out B A."""
        left_OR, right_RI, scale = self._factors(name, gradient)
        return scale * torch.sum(left_OR.T @ gradient.to(left_OR.dtype) * right_RI)

    def add_to(self, name: str, tensor: Tensor, coefficient: float) -> None:
        """Add coefficient * s B A to a matrix in place, without holding the product."""
        left_OR, right_RI, scale = self._factors(name, tensor)
        tensor.addmm_(left_OR, right_RI, alpha=coefficient * scale)

    def _factors(self, name: str, like: Tensor) -> tuple[Tensor, Tensor, float]:
        left, right, scale = self.factors[name]
        kind = exact(like.dtype)
        return left.to(like.device, kind), right.to(like.device, kind), scale


def dense_vector(deltas: Mapping[str, Tensor]) -> DenseVector:
    """Return a task vector of changes that are in memory, or in a mapping that reads them when asked."""
    return DenseVector({name: tuple(delta.shape) for name, delta in deltas.items()}, deltas.__getitem__)


def difference(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> DenseVector:
    """Return the task vector tuned - base, subtracted in float32 whenever a tensor is asked for.

    Tensors that are no floating-point numbers (positions, counters) are left out.

    Raises:
        MultituneError: a tensor of one is missing in the other, or has another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items() if tensor.is_floating_point()}
    require_same_tensors(base, tuned)

    def read(name: str) -> Tensor:
        kind = exact(base[name].dtype)
        return tuned[name].to(kind) - base[name].to(kind)

    return DenseVector(shapes, read)


def vector_of_file(path: Path) -> DenseVector:
    """Return a task vector whose changes lie, under the model's names, in one safetensors file; it is memory-mapped.

    Keep such files in float32 or bfloat16: float16 loses small changes.

    Raises:
        MultituneError: the file is missing or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt").__enter__()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise MultituneError(
            f"The task vector cannot be read: {error}.", str(path), "Give a safetensors file of changes."
        ) from None
    return DenseVector(shapes, file.get_tensor)


def require_same_tensors(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
    """Raise MultituneError unless two models have the same tensors of the same shapes."""
    if odd := sorted(base.keys() ^ tuned.keys()):
        side = "second" if odd[0] in base else "first"
        raise MultituneError(
            f"{len(odd)} tensors are missing in one of two models: '{odd[0]}' is not in the {side}.",
            "models",
            "Give models that were tuned from one base, under the same names.",
        )
    for name, tensor in base.items():
        if tuned[name].shape != tensor.shape:
            raise MultituneError(
                f"'{name}' has shape {list(tensor.shape)} in one model and {list(tuned[name].shape)} in another.",
                "models",
                "Give models that were tuned from one base.",
            )
