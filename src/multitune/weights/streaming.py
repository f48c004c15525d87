"""One tensor of all models, side by side, in chunks of float32: what a method reads.

A source gives any stretch of a flattened tensor. What it gives does not depend on where chunks begin and end: stored
values are converted one by one, and the delta of a LoRA is multiplied out in blocks of rows that are fixed for the
tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from multitune.weights.matching import Origin
from multitune.weights.selection import Rows

BLOCK = 1 << 12
"""Sums over a tensor are sums of these blocks, so that they do not depend on the chunks."""

CHUNK = 1 << 17
"""Entries of a chunk: a row of it fits a core's second-level cache. Measured: half as many cost a fifth more, on a busy
machine half more; twice as many are no faster."""


class Source(Protocol):
    """One tensor of one model.

    Attributes:
        relative: whether the entries are differences from the base's.
    """

    relative: bool

    def fill(self, start: int, out: torch.Tensor) -> None:
        """Write the entries from ``start`` of the flattened tensor into ``out`` (float32)."""


@dataclass
class Stored:
    """A tensor as it lies in a file, or in memory."""

    flat: torch.Tensor
    relative: bool = False

    def fill(self, start: int, out: torch.Tensor) -> None:
        out.copy_(self.flat[start : start + out.numel()])


class Matched:
    """Rows of a stored matrix in the result's order; a row that it has not is the mean of the others' that have it.

    Args:
        matrix: stored, [rows, ...].
        rows: for each row of the result the matrix's, -1 where it has none.
        others: that stand in; a row that none of them has is zero.
    """

    relative = False

    def __init__(self, matrix: torch.Tensor, rows: torch.Tensor, others: Sequence[Matched]) -> None:
        self.matrix, self.rows, self.others = matrix.reshape(matrix.shape[0], -1), rows, tuple(others)

    def fill(self, start: int, out: torch.Tensor) -> None:
        width = self.matrix.shape[1]
        first, last = start // width, (start + out.numel() - 1) // width + 1
        values, _ = self.values(first, last)
        out.copy_(values.reshape(-1)[start - first * width :][: out.numel()])

    def values(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows of the result, float32 [R, W], and which of them are known, float32 [R, 1] of 0 and 1."""
        rows = self.rows[first:last]
        known = (rows >= 0).float().unsqueeze(1)
        values = self.matrix[rows.clamp(min=0)].float().mul_(known)
        if self.others and not known.all():
            theirs = [other.values(first, last) for other in self.others]
            count = torch.stack([each for _, each in theirs]).sum(0)
            mean = torch.stack([each for each, _ in theirs]).sum(0) / count.clamp(min=1)
            values += mean * (1 - known)
            known = torch.maximum(known, count.clamp(max=1))
        return values, known


class Factored:
    """The delta scale * B @ A of a LoRA, multiplied out in blocks of rows; one block is kept.

    Args:
        b: [rows, rank].
        a: [rank, columns].
        scale: of the product.
    """

    relative = True

    def __init__(self, b: torch.Tensor, a: torch.Tensor, scale: float) -> None:
        self.b, self.a, self.scale = b, a, scale
        self.block_rows = max(1, CHUNK // a.shape[1])
        self._block: tuple[int, torch.Tensor] | None = None

    def fill(self, start: int, out: torch.Tensor) -> None:
        entries = self.block_rows * self.a.shape[1]
        done = 0
        while done < out.numel():
            number, offset = divmod(start + done, entries)
            piece = self._rows(number)[offset : offset + out.numel() - done]
            out[done : done + piece.numel()] = piece
            done += piece.numel()
        if start + done == self.b.shape[0] * self.a.shape[1]:
            self._block = None  # ranks over a whole model read one tensor after the other, and keep all of these

    def _rows(self, number: int) -> torch.Tensor:
        if self._block is None or self._block[0] != number:
            rows = self.b[number * self.block_rows : (number + 1) * self.block_rows]
            self._block = number, (rows @ self.a).mul_(self.scale).reshape(-1)
        return self._block[1]


class Absent:
    """A tensor that an adapter does not change: a delta of zeros."""

    relative = True

    def fill(self, start: int, out: torch.Tensor) -> None:
        out.zero_()


def source_of(origin: Origin) -> Source:
    """Return the source of one tensor of a whole model or an adapter."""
    checkpoint, name = origin.checkpoint, origin.name
    if origin.rows is not None:
        return _matched(origin)
    if checkpoint.adapter is not None:
        if name in checkpoint.targets:
            return Factored(*checkpoint.factored(name))
        if name not in checkpoint.replaced:
            return Absent()
        name = checkpoint.replaced[name]
    return Stored(checkpoint.tensor(name).reshape(-1))


def _matched(origin: Origin) -> Matched:
    others = [_matched(other) for other in origin.others]
    return Matched(origin.checkpoint.tensor(origin.name), torch.from_numpy(origin.rows), others)


_buffers = threading.local()


def _scratch(rows: int, length: int, device: str) -> torch.Tensor:
    """Return float32 [rows, length] that this thread uses again and again; memory then is no matter of the tensors."""
    buffer: torch.Tensor | None = getattr(_buffers, device, None)
    if buffer is None or buffer.numel() < rows * length:
        buffer = torch.empty(rows * length, device=device)
        setattr(_buffers, device, buffer)
    return buffer[: rows * length].view(rows, length)


@dataclass(slots=True)
class Chunk:
    """The same stretch of one tensor in base and models; a method may overwrite ``deltas``.

    Attributes:
        start: index of the first entry in the flattened tensor.
        base: float32 [n]; zeros where the models' own values are merged.
        deltas: float32 [T, n]: differences from ``base``.
        anchor: float32 [n], the base's entries in any case; zeros where there is none.
    """

    start: int
    base: torch.Tensor
    deltas: torch.Tensor
    anchor: torch.Tensor


class Stream:
    """A tensor of T models and their base, read in chunks into buffers that are used again.

    Args:
        base: of the deltas; None: the models' own values count, as deltas from zero.
        models: T sources.
        shape: of the tensor.
        anchor: where ``base`` is None: what adapters add to, and what LiNeS scales from.
        chunk: entries of a chunk, rounded up to whole blocks.
        whole_rows: chunks end with rows of the last dimension (and their size follows from that).
        device: where the arithmetic is done.

    Attributes:
        unit: every chunk but the last is a multiple of so many entries, for sums that do not depend on chunks.
    """

    def __init__(
        self,
        base: Source | None,
        models: Sequence[Source],
        shape: tuple[int, ...],
        *,
        anchor: Source | None = None,
        chunk: int = CHUNK,
        whole_rows: bool = False,
        device: str = "cpu",
    ) -> None:
        self.base, self.models, self.shape, self.anchor = base, tuple(models), shape, anchor
        self.numel = prod(shape)
        self.width = shape[-1] if shape else 1
        if whole_rows:
            self.chunk = max(1, chunk // max(self.width, 1)) * max(self.width, 1)
        else:
            self.chunk = -(-chunk // BLOCK) * BLOCK
        self.unit = max(self.width, 1) if whole_rows else BLOCK
        self.chunk = max(1, min(self.chunk, self.numel))
        self.device = device

    @property
    def starts(self) -> range:
        return range(0, self.numel, self.chunk)

    def read(self, start: int) -> Chunk:
        """Return the chunk that begins at ``start``; it lives until this thread reads again, from any stream."""
        length = min(self.chunk, self.numel - start)
        values = _scratch(len(self.models) + 2, self.chunk, "cpu")[:, :length]
        reference = self.base or self.anchor
        if reference is None:
            values[0].zero_()
        else:
            reference.fill(start, values[0])
        for source, row in zip(self.models, values[2:], strict=True):
            source.fill(start, row)
        if self.device != "cpu":
            values = _scratch(len(self.models) + 2, self.chunk, self.device)[:, :length].copy_(values)
        anchor, base, deltas = values[0], values[0], values[2:]
        if self.base is None:
            base = values[1].zero_()
        for source, row in zip(self.models, deltas, strict=True):
            if self.base is not None and not source.relative:
                row.sub_(anchor)
            elif self.base is None and source.relative:
                row.add_(anchor)
        return Chunk(start, base, deltas, anchor)

    def __iter__(self) -> Iterator[Chunk]:
        return map(self.read, self.starts)

    @property
    def rows(self) -> Rows:
        """The deltas as vectors to select from."""
        return Rows(self.numel, self.starts, lambda start: self.read(start).deltas)


def partial_sums(values: torch.Tensor, unit: int) -> list[float]:
    """Return the sums of ``unit`` float32 entries each, the last perhaps of fewer, in float64.

    Added up by ``math.fsum`` they give one number, wherever chunks begin.
    """
    whole = values.numel() // unit * unit
    sums = values[:whole].view(-1, unit).sum(1, dtype=torch.float64).tolist()
    rest = [float(values[whole:].sum(dtype=torch.float64))] if whole < values.numel() else []
    return [*sums, *rest]
