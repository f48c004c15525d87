"""Models of which only the tensors that training changed are stored: the base gives the others.

``delta.safetensors`` holds the trained tensors as they are now, not their differences, so that base and delta together
are the trained model bit by bit. Its metadata hold a checksum of the tensors that the base must give.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multitune.errors import MultituneError
from multitune.models.location import DELTA_FILE, check_safetensors


def save_trained(model: Any, folder: Path) -> None:
    """Write a transformers model's config and those of its parameters that require gradients.

    Args:
        model: whole, as trained.
        folder: exists.
    """
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    kept = [name for name, p in model.named_parameters() if not p.requires_grad]
    told = {"format": "pt", "dtype": str(model.dtype), "base": checksum(model, kept)}
    save_file(tensors, folder / DELTA_FILE, metadata=told)
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


@torch.no_grad()
def load_trained(model: Any, folder: Path) -> None:
    """Put the stored tensors into a model that is the base.

    Raises:
        MultituneError: the file is damaged, or the model is another than the base that was trained.
    """
    file = folder / DELTA_FILE
    check_safetensors(file)
    parameters = dict(model.named_parameters())
    try:
        with safe_open(file, framework="pt") as stored:
            names, told = set(stored.keys()), stored.metadata() or {}
            if strange := sorted(name for name in names if name not in parameters):
                raise _other_base(f"it has no tensor '{strange[0]}'", file)
            if told.get("dtype") == str(model.dtype) and told.get("base") != checksum(model, parameters.keys() - names):
                raise _other_base("its other tensors have changed", file)
            for name in sorted(names):
                tensor = stored.get_tensor(name)
                if tensor.shape != parameters[name].shape:
                    raise _other_base(f"its '{name}' has shape {list(parameters[name].shape)}", file)
                parameters[name].copy_(tensor)
    except SafetensorError as error:
        raise MultituneError(f"The trained tensors cannot be read: {error}.", str(file), "Copy them again.") from None


def checksum(model: Any, names: Iterable[str]) -> str:
    """Return a checksum of some of a model's parameters, name by name in alphabetical order."""
    wanted = set(names)
    found = 0
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        if name in wanted:
            found = zlib.crc32(_bytes(parameter), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def _bytes(tensor: Tensor) -> Any:
    """Return a tensor's bytes as an array, which zlib reads without a copy."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _other_base(how: str, file: Path) -> MultituneError:
    return MultituneError(
        f"The base is not the model whose half was trained: {how}.",
        str(file),
        "Restore the base that multitune.json names, or train again with export: merged.",
    )
