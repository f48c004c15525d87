"""A fusion as a small JSON file that names its models, and back to a model that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multitune.decoding.fusion_config import FusionConfig
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

FUSION_FILE = "fusion.json"


class FusionFile(BaseModel):
    """Which models are fused, and how.

    Attributes:
        large, small: the large model and the small base; a folder is relative to the file's own.
        experts: tuned versions of the small base, whole models or adapters, by the names that traces tell.
        fusion: coefficients, their search, and prompts of the roles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    large: ModelConfig
    small: ModelConfig
    experts: dict[str, ModelConfig] = Field(min_length=1)
    fusion: FusionConfig = FusionConfig()


def read_fusion(file: Path) -> FusionFile:
    """Read a fusion file.

    Raises:
        MultituneError: it cannot be read, or a key is missing, unknown or wrong.
    """
    try:
        return FusionFile.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else "it is not valid JSON"
        raise MultituneError(
            f"The fusion file cannot be used: {told}.", str(file), "It has large, small, experts {name: model}, fusion."
        ) from None


def load_fusion(file: Path, device: str = "auto") -> Backbone:
    """Return the model of a fusion file; its ``model`` is a `LogitFusion`.

    Adapters of plain LoRA over the small base share one copy of it. Models are loaded one after the other.

    Raises:
        MultituneError: the file or a model cannot be read, or the models cannot be fused.
    """
    from multitune.decoding.logit_fusion import LogitFusion
    from multitune.models.loading import Backbone

    told = read_fusion(file)
    places = {name: _place(config, file.parent) for name, config in told.experts.items()}
    small_place = _place(told.small, file.parent)
    _check_places({"large": _place(told.large, file.parent), "small": small_place, **places}, file)
    large, small = _load(_place(told.large, file.parent), device), _load(small_place, device)
    shared = [name for name, place in places.items() if _shares(place, small_place)]
    adapters = _with_adapters(small, [Path(places[name].name) for name in shared])
    by_name = dict(zip(shared, adapters, strict=True))
    experts = [by_name[name] if name in by_name else _load(place, device) for name, place in places.items()]
    fusion = LogitFusion(large, small, experts, told.fusion, names=list(places))
    return Backbone(fusion, large.tokenizer, "causal", ModelConfig(name=str(file)))


def _place(config: ModelConfig, folder: Path) -> ModelConfig:
    """Return the model with a folder's name made absolute."""
    beside = folder / config.name
    return config.model_copy(update={"name": str(beside.resolve())}) if beside.is_dir() else config


def _check_places(places: dict[str, ModelConfig], file: Path) -> None:
    first: dict[str, str] = {}
    for role, config in places.items():
        if config.name in first:
            raise MultituneError(
                f"One model is given twice, as {first[config.name]} and as {role}: {config.name}.",
                str(file),
                "Give the large model, the small base and every expert once.",
            )
        first[config.name] = role


def _load(config: ModelConfig, device: str) -> Backbone:
    from multitune.models.loading import DESCRIPTION_FILE, load_backbone, load_saved

    folder = Path(config.name)
    if any((folder / name).is_file() for name in ("adapter_config.json", DESCRIPTION_FILE)):
        return load_saved(folder, device)
    return load_backbone(config, device=device)


def _shares(expert: ModelConfig, small: ModelConfig) -> bool:
    """Whether an expert is an adapter of plain LoRA over the small base, and can be a row of its batch."""
    from multitune.decoding.fusion_checks import shares_base
    from multitune.models.loading import base_of_adapter
    from multitune.models.location import resolve

    folder = Path(expert.name)
    if not (folder / "adapter_config.json").is_file() or (Path(small.name) / "adapter_config.json").is_file():
        return False
    from peft import PeftConfig

    base = base_of_adapter(folder)
    return shares_base(PeftConfig.from_pretrained(str(folder))) and resolve(base) == resolve(small)


def _with_adapters(small: Backbone, folders: list[Path]) -> list[str]:
    """Load adapters over the small base, and return the names that they got."""
    from multitune.models.loading import add_adapter

    names = [f"expert_{place}" for place in range(len(folders))]  # peft allows no dots
    for name, folder in zip(names, folders, strict=True):
        small.model = add_adapter(small.model, folder, name)
    return names
