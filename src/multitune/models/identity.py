"""Which weights a base has, told by a few bytes of every tensor: an adapter fits those that it was trained on alone.

Models of one architecture have the same shapes, and an adapter of one loads over another without a word, to answer
nonsense. A digest of 192 bytes per tensor is kept with the adapter, which costs next to nothing for a base of any size.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.location import resolve, weight_files

BASE_DIGEST = "base_digest"
"""Its key in the description of a saved adapter."""

PIECE = 64
"""Bytes that are read at the start, in the middle and at the end of every tensor."""


def base_digest(config: ModelConfig) -> str | None:
    """Return the digest of the weights that a config names, in a folder or in the hub's cache; None where neither holds
    them."""
    from huggingface_hub import try_to_load_from_cache

    try:
        location = resolve(config)
        if not Path(location).is_dir():
            found = try_to_load_from_cache(location, "config.json", revision=config.revision)
            if not isinstance(found, str):
                return None
            location = str(Path(found).parent)
        return weights_digest(Path(location))
    except MultituneError:  # no safetensors there
        return None


def weights_digest(folder: Path) -> str:
    """Return a digest of the weights of a folder: names, types, shapes and three pieces of every tensor.

    It does not depend on how many files hold the tensors, nor on their order.

    Raises:
        MultituneError: the folder holds no safetensors.
    """
    tensors = {name: told for file in weight_files(folder) for name, told in _tensors(file).items()}
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


def check_base(folder: Path, described: dict[str, Any], base: ModelConfig) -> None:
    """Check that an adapter stands over the weights that it was trained on, as far as its description tells them.

    Args:
        folder: of the adapter.
        described: what was written beside it.
        base: which it is to stand over.

    Raises:
        MultituneError: they are others.
    """
    kept = described.get(BASE_DIGEST)
    if kept is None or (found := base_digest(base)) is None or found == kept:
        return
    raise MultituneError(
        f"The adapter was trained on other weights than those of '{base.name}', which have changed or been replaced.",
        str(folder),
        f"Give it the base that it was trained on, or train it anew; without {BASE_DIGEST} in its multitune.json it "
        "loads all the same.",
    )


def _tensors(file: Path) -> dict[str, list[Any]]:
    """Return type, shape and pieces of every tensor of a safetensors file (its format: see `check_safetensors`)."""
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(start - 8))
        header.pop("__metadata__", None)
        found = {}
        for name, told in header.items():
            first, last = told["data_offsets"]
            pieces = []
            for place in (first, (first + last) // 2, max(first, last - PIECE)):
                stream.seek(start + place)
                pieces.append(stream.read(min(PIECE, last - place)).hex())
            found[name] = [told["dtype"], told["shape"], *pieces]
        return found
