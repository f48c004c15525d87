"""What a method may know of the tensor that its piece belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Layer:
    """One tensor, and which piece of it a method is given.

    Attributes:
        name: of the tensor in the result.
        shape: of the whole tensor.
        start: index of the piece's first entry in the flattened tensor.
        statistics: what the method had to know of the whole tensor (see ``STATISTICS``); None: nothing.
        seed: of random masks.
        compat: whom to follow where libraries differ from the authors, as in ``MergeConfig``.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    statistics: Any = None
    seed: int = 0
    compat: str = "authors"

    @property
    def width(self) -> int:
        """Entries of a row: the last dimension; a vector is one row."""
        return self.shape[-1] if self.shape else 1
