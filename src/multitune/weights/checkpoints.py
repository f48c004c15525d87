"""A model folder as a list of tensors: names, shapes and places in the files from the headers, data memory-mapped.

The safetensors format: 8 bytes with the header's length (little endian), the header (JSON), then the tensors' bytes.
Opening reads headers only and loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError
from multitune.models.location import weight_files, whole_folder

if TYPE_CHECKING:
    import torch

BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Bytes per element by the format's names of types."""

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that can be merged; the others (integers, booleans, quantised values) are copied where they are equal."""

TORCH = FLOATS | {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}

ADAPTER_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file.

    Attributes:
        name: in the checkpoint.
        dtype: as the format spells it (``BF16``).
        shape: of the tensor.
        file: that holds it.
        start: of its first byte in the file.
        bytes: that it takes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, whole model or LoRA adapter, of which only headers were read.

    Attributes:
        folder: absolute path.
        entries: tensors by name, in the order of files and offsets.
        config: parsed ``config.json`` ({} of an adapter).
        adapter: parsed ``adapter_config.json``; None of a whole model.
        fingerprint: changes when a header, the config or a file's size changes.
    """

    folder: Path
    entries: dict[str, Entry]
    config: dict[str, Any]
    adapter: dict[str, Any] | None
    fingerprint: str
    _maps: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Read the headers of a folder's weights.

        Raises:
            MultituneError: no folder, no config, only pickled weights, a shard cut short or damaged, an index that
                does not say what the shards hold, an adapter that is no LoRA.
        """
        path = whole_folder(Path(folder).expanduser())
        files = weight_files(path)
        entries: dict[str, Entry] = {}
        digest = hashlib.sha256()
        for file in files:
            header, data_start = _header(file)
            digest.update(json.dumps([file.name, file.stat().st_size, header], sort_keys=True).encode())
            for entry in _entries(file, header, data_start):
                if entry.name in entries:
                    raise MultituneError(
                        f"The tensor '{entry.name}' is in two weight files.",
                        f"{entries[entry.name].file.name} and {file.name} in {path}",
                        "Download or copy the model again.",
                    )
                entries[entry.name] = entry
        _check_index(path, entries)
        config = _json(path / "config.json") if (path / "config.json").is_file() else {}
        digest.update(json.dumps(config, sort_keys=True).encode())
        adapter = None
        if files[0].name == "adapter_model.safetensors":
            adapter = _json(path / "adapter_config.json")
            _check_adapter(adapter, entries, path)
        return cls(path, entries, config, adapter, digest.hexdigest())

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        return {name: entry.dtype for name, entry in self.entries.items()}

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.bytes for entry in self.entries.values())

    def raw(self, name: str) -> memoryview:
        """Return a tensor's bytes, memory-mapped."""
        entry = self.entries[name]
        if entry.file not in self._maps:
            # a private mapping counts as writable, which torch asks for; nothing is ever written through it
            with entry.file.open("rb") as stream:
                self._maps[entry.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        return memoryview(self._maps[entry.file])[entry.start : entry.start + entry.bytes]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, memory-mapped: its pages are read when they are touched. It must not be written to."""
        import torch

        entry = self.entries[name]
        dtype = getattr(torch, TORCH.get(entry.dtype, "uint8"))
        if not entry.bytes:
            return torch.empty(entry.shape, dtype=dtype)
        data = self.raw(name)
        if entry.start % dtype.itemsize:  # old files do not align their tensors
            data = memoryview(bytearray(data))
        return torch.frombuffer(data, dtype=dtype).reshape(entry.shape if entry.dtype in TORCH else -1)

    @cached_property
    def targets(self) -> dict[str, str]:
        """Weights that an adapter changes, as its base names them after loading -> the module's name in the adapter."""
        found = {}
        for name in self.entries:
            match = re.fullmatch(r"(.+)\.lora_(?:embedding_)?A(?:\.weight)?", name)
            if match:
                found[match[1].removeprefix(ADAPTER_PREFIX) + ".weight"] = match[1]
        return found

    @cached_property
    def replaced(self) -> dict[str, str]:
        """Tensors that an adapter brings whole (modules_to_save, biases): name in the base -> name in the adapter.

        Where an embedding has factors, peft saves the embedding itself besides (``base_layer``): that is the base's.
        """
        if self.adapter is None:
            return {}
        whole = [name for name in self.entries if ".lora_" not in name and ".base_layer." not in name]
        return {name.removeprefix(ADAPTER_PREFIX): name for name in whole}

    def factored(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return an adapter's delta of one weight as (B, A, scale) in float32; the delta is scale * B @ A.

        Args:
            name: of the weight in the base, e.g. ``model.layers.0.self_attn.q_proj.weight``. The result has the shape
                of that weight also where the layer stores it transposed (GPT-2, embeddings).
        """
        module = self.targets[name]
        is_embedding = f"{module}.lora_embedding_A" in self.entries
        suffix = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        a, b = (self.tensor(f"{module}.{each}").float() for each in suffix)
        assert self.adapter is not None
        scale = _scale(self.adapter, module.removeprefix(ADAPTER_PREFIX), a.shape[0])
        if is_embedding or self.adapter.get("fan_in_fan_out"):
            return a.T.contiguous(), b.T.contiguous(), scale  # (B A)^T = A^T B^T
        return b, a, scale

    def factored_shape(self, name: str) -> tuple[int, int]:
        """Return the shape of ``factored(name)``'s delta without reading data."""
        module = self.targets[name]
        is_embedding = f"{module}.lora_embedding_A" in self.entries
        suffix = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        a, b = (self.entries[f"{module}.{each}"].shape for each in suffix)
        assert self.adapter is not None
        return (a[1], b[0]) if is_embedding or self.adapter.get("fan_in_fan_out") else (b[0], a[1])


def _scale(adapter: dict[str, Any], module: str, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA; patterns go before the common alpha."""
    alpha = adapter["lora_alpha"] if adapter.get("lora_alpha") is not None else rank
    for pattern, own in (adapter.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = own
            break
    return float(alpha) / (sqrt(rank) if adapter.get("use_rslora") else rank)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    return header, 8 + length


def _entries(file: Path, header: dict[str, Any], data_start: int) -> list[Entry]:
    """Return a file's tensors by offset; that the file is as long as the last one ends was checked before."""
    found = []
    for name, told in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(told["dtype"]), tuple(int(n) for n in told["shape"])
            first, last = (int(offset) for offset in told["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise MultituneError(
                f"The header does not say type, shape and place of the tensor '{name}'.",
                str(file),
                "Download or copy the file again.",
            ) from None
        if dtype not in BYTES or last - first != BYTES[dtype] * prod(shape) or first < 0 or min(shape, default=0) < 0:
            raise MultituneError(
                f"The header gives the tensor '{name}' {last - first} bytes, and {dtype} {list(shape)} takes others.",
                str(file),
                "Download or copy the file again.",
            )
        found.append(Entry(name, dtype, shape, file, data_start + first, last - first))
    found.sort(key=lambda entry: (entry.start, entry.name))
    for one, behind in pairwise(each for each in found if each.bytes):
        if one.start + one.bytes > behind.start:
            raise MultituneError(
                f"The header puts the tensors '{one.name}' and '{behind.name}' on the same bytes.",
                str(file),
                "Download or copy the file again.",
            )
    return found


def _check_index(folder: Path, entries: dict[str, Entry]) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    told: dict[str, str] = _json(index).get("weight_map", {})
    for name in sorted(told.keys() | entries.keys()):
        place = entries[name].file.name if name in entries else None
        if told.get(name) != place:
            really = f"it is in {place}" if place else "it is not there"
            raise MultituneError(
                f"The index puts the tensor '{name}' into {told.get(name, 'no file')}, and {really}.",
                str(index),
                "Download or copy the model again.",
            )


def _check_adapter(adapter: dict[str, Any], entries: dict[str, Entry], folder: Path) -> None:
    kind = adapter.get("peft_type")
    strange = [name for name in entries if ".lora_" in name and not re.search(r"\.lora_(embedding_)?[AB](\.|$)", name)]
    start = str(adapter.get("init_lora_weights")).lower()
    moved = next((name for name in CHANGES_THE_BASE if start.startswith(name)), None)
    biased = [name for name in entries if re.search(r"\.lora_(embedding_)?B\.bias$", name)]
    if kind != "LORA" or adapter.get("use_dora") or strange or biased or moved:
        what = f"a {kind} adapter" if kind != "LORA" else "a LoRA with more than factors A and B (DoRA, for example)"
        if kind == "LORA" and biased:
            what = "a LoRA with biases of its own (lora_bias)"
        elif kind == "LORA" and moved:
            what = f"a LoRA that changed its base when it was made (init_lora_weights: {start})"
        raise MultituneError(
            f"The folder holds {what}, which is no sum on the weights.",
            str(folder),
            "Load it with peft, call merge_and_unload(), save the whole model and merge that.",
        )


CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways in which a LoRA starts that take its first B A out of the base's weights."""


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError
        return found
    except (OSError, ValueError):
        raise MultituneError(
            "The file is missing or not valid JSON.", str(file), "Download or copy the model again."
        ) from None
