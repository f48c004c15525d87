"""A model folder that is written tensor by tensor, in any order, and is whole or absent.

All shapes are known before the first byte of data, so each shard's header is written at once and every tensor goes to
its offset. Work is done in a folder beside the target; what is finished is noted in a journal with a checksum, so that
a killed merge goes on where it stopped. The last step renames the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.weights.checkpoints import BYTES

SHARD_BYTES = 5_000_000_000
"""Largest shard, as transformers writes them; a larger tensor has a shard of its own."""

READ_BACK = 1 << 22


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor of the result goes: file name, first byte, bytes."""

    file: str
    start: int
    bytes: int


@dataclass(frozen=True)
class Layout:
    """The shards of a result.

    Attributes:
        slots: place of every tensor by name.
        headers: file name -> what stands before the data.
        sizes: file name -> bytes, header included.
        index: content of ``model.safetensors.index.json``; None for a single file.
    """

    slots: dict[str, Slot]
    headers: dict[str, bytes]
    sizes: dict[str, int]
    index: dict[str, Any] | None


def lay_out(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], shard_bytes: int = SHARD_BYTES
) -> Layout:
    """Distribute tensors (name, type, shape) over shards in the order given; ``metadata`` goes into every header."""
    shards: list[list[tuple[str, str, tuple[int, ...], int]]] = [[]]
    filled = 0
    for name, dtype, shape in tensors:
        size = BYTES[dtype] * prod(shape)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, dtype, shape, size))
        filled += size
    slots: dict[str, Slot] = {}
    headers: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, dtype, shape, size in sorted(shard, key=lambda each: -BYTES[each[1]]):  # widest first: all aligned
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        headers[file] = len(text).to_bytes(8, "little") + text
        sizes[file] = len(headers[file]) + offset
        for name, *_, size in shard:
            slots[name] = Slot(file, len(headers[file]) + header[name]["data_offsets"][0], size)
    index = None
    if len(shards) > 1:
        total = sum(slot.bytes for slot in slots.values())
        index = {"metadata": {"total_size": total}, "weight_map": {name: slots[name].file for name in sorted(slots)}}
    return Layout(slots, headers, sizes, index)


def check_target(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output folder that lies in an input (or holds one), or that holds anything.

    Raises:
        MultituneError: as said.
    """
    target = out.expanduser().resolve()
    for folder in inputs:
        if target == folder or folder in target.parents or target in folder.parents:
            raise MultituneError(
                f"The output folder and the model '{folder}' lie in one another.",
                str(out),
                "Give a folder of its own for the result.",
            )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MultituneError(
            "The output folder exists and is not empty.", str(out), "Give a new folder, or remove the old one."
        )


def check_space(out: Path, needed: int) -> None:
    """Refuse to start where the disk cannot hold the result; what an interrupted merge has written counts as there.

    Raises:
        MultituneError: too little space, with both sizes.
    """
    partial = partial_folder(out)
    folder = partial.parent
    while not folder.exists():
        folder = folder.parent
    there = sum(file.stat().st_blocks * 512 for file in partial.glob("*.safetensors")) if partial.exists() else 0
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise MultituneError(
            f"The result takes {needed / 1e9:.1f} GB, and {(free + there) / 1e9:.1f} GB are free on the disk.",
            str(out),
            "Free space, give a folder on another disk, or write bfloat16.",
        )


def partial_folder(out: Path) -> Path:
    """Return where a result is written until it is whole."""
    target = out.expanduser().resolve()
    return target.parent / f".{target.name}.partial"


def _claim_file(out: Path) -> Path:
    return out.parent / f".{out.name}.lock"


def _claimed(out: Path) -> int:
    """Return an open lock on a target: two merges into one folder would throw away each other's work.

    Raises:
        MultituneError: another process writes to it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    claim = os.open(_claim_file(out), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        import fcntl

        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has no such lock
        pass
    except OSError:
        os.close(claim)
        raise MultituneError(
            "Another merge is writing to this folder.", str(out), "Wait for it, or give another folder."
        ) from None
    return claim


class Writer:
    """The folder of an unfinished result.

    Args:
        out: the target.
        layout: of its weights.
        fingerprint: of everything that decides the result's bytes; an unfinished result with another one is discarded.

    Attributes:
        folder: where files are written until ``finish``.
        finished: tensors that an earlier attempt has written, their checksums verified.
    """

    def __init__(self, out: Path, layout: Layout, fingerprint: str) -> None:
        self.out, self.layout = out.expanduser().resolve(), layout
        self.folder = partial_folder(out)
        self._journal = self.folder / "journal.jsonl"
        self._claim = _claimed(self.out)
        if self._first_line() != fingerprint:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            for name, header in layout.headers.items():
                with (self.folder / name).open("wb") as file:
                    file.write(header)
                    file.truncate(layout.sizes[name])
            self._journal.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
        self._files = {name: os.open(self.folder / name, os.O_RDWR) for name in layout.headers}
        self._sums: dict[str, int] = {}
        self._lock = threading.Lock()
        self.finished = self._verified()
        self._log = self._journal.open("a", encoding="utf-8")

    def _first_line(self) -> str | None:
        try:
            with self._journal.open(encoding="utf-8") as journal:
                found: str | None = json.loads(journal.readline())["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == size
            for name, size in self.layout.sizes.items()
        )
        return found if whole else None

    def _verified(self) -> set[str]:
        """Return the journalled tensors whose bytes still have their checksum; a last line may be cut short."""
        found = set()
        for line in self._journal.read_text(encoding="utf-8").splitlines()[1:]:
            try:
                entry = json.loads(line)
                name, checksum = entry["tensor"], entry["crc32"]
            except (ValueError, KeyError, TypeError):
                continue
            if name in self.layout.slots and self._checksum(self.layout.slots[name]) == checksum:
                found.add(name)
        return found

    def _checksum(self, slot: Slot) -> int:
        checksum = 0
        for start in range(0, slot.bytes, READ_BACK):
            length = min(READ_BACK, slot.bytes - start)
            checksum = zlib.crc32(os.pread(self._files[slot.file], length, slot.start + start), checksum)
        return checksum

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Write bytes of a tensor from byte ``start`` of it on; the pieces of one tensor come in order."""
        slot = self.layout.slots[name]
        self._sums[name] = zlib.crc32(data, self._sums.get(name, 0))
        position = slot.start + start
        while data:
            written = os.pwrite(self._files[slot.file], data, position)
            data, position = data[written:], position + written

    def close_tensor(self, name: str) -> None:
        """Note in the journal that all of a tensor is written."""
        with self._lock:
            self._log.write(json.dumps({"tensor": name, "crc32": self._sums.pop(name, 0)}) + "\n")
            self._log.flush()

    def close(self) -> None:
        """Close the files; the unfinished result stays for the next attempt."""
        self._log.close()
        for descriptor in self._files.values():
            os.close(descriptor)
        _claim_file(self.out).unlink(missing_ok=True)
        os.close(self._claim)

    def finish(self) -> None:
        """Make the result appear under its name, whole."""
        for descriptor in self._files.values():
            os.fsync(descriptor)
        if self.layout.index is not None:
            text = json.dumps(self.layout.index, indent=2)
            (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        self._journal.unlink()
        if self.out.exists():
            self.out.rmdir()  # empty, as check_target saw
        os.replace(self.folder, self.out)
        self.close()
