"""Backbones from the hub or a folder, and back to disk so that plain transformers and plain peft load them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.heads import HEADS_FILE, MultiTaskEncoder, encoder_with_heads, load_heads, save_heads
from multitune.models.identity import BASE_DIGEST, base_digest, check_base
from multitune.models.location import PROMPTS_FOLDER, adapter_file, checked_folder, holds_delta, read_json, resolve
from multitune.models.partial import load_trained, save_trained
from multitune.models.pretrained import (
    Backbone,
    ModelFacts,
    load_pretrained,
    load_tokenizer,
    model_facts,
    peft_warnings_logged,
)
from multitune.tasks.task import Task

__all__ = [
    "Backbone",
    "ModelFacts",
    "add_adapter",
    "base_of_adapter",
    "describe",
    "description_of",
    "load_backbone",
    "load_saved",
    "load_tokenizer",
    "merged_model",
    "model_facts",
    "rounds_of",
    "save_backbone",
]

DESCRIPTION_FILE = "multitune.json"
"""What transformers and peft do not keep: form, base and its loading, rounds of training, its tasks."""

_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "heads.json")


def load_backbone(config: ModelConfig, tasks: Sequence[Task] = (), device: str = "auto", seed: int = 0) -> Backbone:
    """Load tokenizer and weights, in evaluation mode.

    Args:
        config: which model.
        tasks: encoders only: resolved tasks of kind label or regress; each gets a new head.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``...
        seed: of heads and of weights that the checkpoint lacks.

    Raises:
        MultituneError: the model cannot be found, reached, or is damaged; quantisation is not possible here; a task
            that an encoder cannot have.
    """
    backbone = load_pretrained(config, device, seed)
    backbone.rounds = rounds_of(config)
    if backbone.form == "encoder":
        backbone.model = encoder_with_heads(backbone.model, tasks, seed).eval()
        backbone.tasks = tuple(tasks)
    return backbone


def save_backbone(backbone: Backbone, folder: Path, *, merged: bool, delta: bool = False) -> None:
    """Write model and tokenizer so that the ecosystem loads them without this package.

    An adapter is written as peft's own folder, or, with ``merged``, added into the weights and written as a whole
    model; a fully trained model is always written whole. Encoders: the encoder (whole or adapter) with
    ``heads.safetensors`` and ``heads.json`` beside it. Prompts of tasks: an adapter of peft each,
    in ``prompts``. Files are written elsewhere first and moved in when all are complete.

    Args:
        backbone: what was trained; it is left as it is.
        folder: created if missing; model files of an earlier save in it are replaced, other files stay.
        merged: whether adapters are added into the weights.
        delta: whether only the parameters that require gradients are written; loading them needs the base.

    Raises:
        MultituneError: the folder cannot be written, the adapter cannot be merged, or it would be saved without the
            weights that have moved along.
    """
    if backbone.update is not None and backbone.update.method == "delta_lora" and not merged:
        raise MultituneError(
            "Delta-LoRA moves the weights themselves, which an adapter alone does not hold.",
            "adapt.method: delta_lora",
            "Set export: merged.",
        )
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            _write(backbone, Path(temporary), merged, delta, str(folder.resolve()))
            folder.mkdir(exist_ok=True)
            shutil.rmtree(folder / PROMPTS_FOLDER, ignore_errors=True)
            for pattern in _MODEL_FILES:
                for stale in folder.glob(pattern):
                    stale.unlink()
            mode = (Path(temporary) / DESCRIPTION_FILE).stat().st_mode  # safetensors lets nobody else read its files
            for path in sorted(Path(temporary).iterdir()):
                target = folder / path.name
                if path.is_file():
                    path.chmod(mode)
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
    except OSError as error:
        raise MultituneError(
            f"The model cannot be written: {error.strerror or error}.",
            str(folder),
            "Free disk space or choose a folder that can be written.",
        ) from error


def load_saved(folder: Path, device: str = "auto", *, trainable: bool = False) -> Backbone:
    """Load what `save_backbone` wrote, or any folder that peft or transformers wrote.

    Args:
        folder: of the model.
        device: as for ``load_backbone``.
        trainable: whether its adapter, if it has one, is to be trained further.

    Raises:
        MultituneError: the folder is no model, is damaged, holds a whole model beside an adapter; the base of its
            adapter cannot be found, or is another one than it was trained on.
    """
    folder = checked_folder(Path(folder))
    described = description_of(folder)
    adapter, delta = (folder / "adapter_config.json").is_file(), holds_delta(folder)
    own = ModelConfig(name=str(folder), form=described.get("form"))
    base = base_of_adapter(folder) if adapter or delta else own
    if adapter:
        check_base(folder, described, base)
    backbone = load_pretrained(base, device)
    if delta:
        load_trained(backbone.model, folder)
    if adapter:
        backbone.model = add_adapter(backbone.model, folder, trainable=trainable)
    if (folder / HEADS_FILE).is_file():
        backbone.model = load_heads(backbone.model, folder)
    if (folder / PROMPTS_FOLDER).is_dir():
        from multitune.models.task_prompts import attach_prompts, saved_prompts

        attach_prompts(backbone.model, saved_prompts(folder))
    backbone.tasks = tuple(Task.model_validate(task) for task in described.get("tasks", ()))
    backbone.model.eval()
    backbone.rounds = described.get("rounds", 0)
    return backbone


def rounds_of(config: ModelConfig) -> int:
    """Return how many trainings by this package made a model: 0 for one that it did not save."""
    folder = Path(config.name).expanduser()
    return int(description_of(folder).get("rounds", 0)) if folder.is_dir() else 0


def merged_model(backbone: Backbone) -> Any:
    """Return a transformers model with the adapter added into its weights; the backbone stays as it is.

    Quantised weights are read again unquantised: adding to rounded weights and rounding once more would lose the
    adapter.

    Raises:
        MultituneError: the adapter has no equivalent in weights (prompt and prefix tuning, for instance).
    """
    adapted = _carrier(backbone.model)
    try:
        if backbone.config.quantize is None:
            with peft_warnings_logged():
                return copy.deepcopy(adapted).merge_and_unload()
        from peft import PeftModel

        with peft_warnings_logged(), tempfile.TemporaryDirectory() as temporary:
            adapted.save_pretrained(temporary)
            whole = load_pretrained(backbone.config.model_copy(update={"quantize": None}), device="cpu").model
            return PeftModel.from_pretrained(whole, temporary).merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        method = adapted.active_peft_config.peft_type.value.lower()
        raise MultituneError(
            f"An adapter of type {method} cannot be added into the weights.", "export: merged", "Set export: adapter."
        ) from error


def add_adapter(model: Any, folder: Path, name: str = "default", *, trainable: bool = False) -> Any:
    """Return a model with the adapter of a folder, beside those that it has already.

    Args:
        model: a transformers model, plain or adapted.
        folder: as peft wrote it.
        name: of the adapter in the model.
        trainable: whether it is to be trained further; it is frozen otherwise.

    Raises:
        MultituneError: the adapter belongs to another model, or its file holds the tensors of another adapter.
    """
    from peft import PeftConfig, PeftModel

    from multitune.models.tuners import register_tuners

    register_tuners()
    file = adapter_file(Path(folder))
    try:
        with peft_warnings_logged():
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name, is_trainable=trainable)
            else:
                prompts = PeftConfig.from_pretrained(str(folder)).is_prompt_learning  # peft loads those frozen only
                model = PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable and not prompts)
                if trainable and prompts:
                    model.peft_config[name].inference_mode = False
                    model.prompt_encoder.requires_grad_(True)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if line.startswith("size mismatch")), lines[0])
        raise _unfit(folder, reason) from error
    _check_tensors(model, name, file)
    return model


def _check_tensors(adapted: Any, name: str, file: Path) -> None:
    """Check that a file holds the tensors of the adapter that was made of it, neither less nor more; peft takes what it
    knows, and leaves the rest of the adapter as it starts."""
    from peft import PeftType, get_peft_model_state_dict
    from safetensors import safe_open

    config = adapted.peft_config[name]
    if config.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):  # peft compares no shapes of these
        width = adapted.get_input_embeddings().weight.shape[-1]
        if config.token_dim != width:
            raise _unfit(file.parent, f"its prompt is {config.token_dim} wide, and the embeddings are {width}")
    with safe_open(file, framework="pt") as stored:
        found = set(stored.keys())
    told = [get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=save) for save in (False, True)]
    if lacking := sorted(set(told[0]) - found):
        raise _unfit(file.parent, f"its file has no tensor '{lacking[0]}', which the model would need")
    if strange := sorted(found - set(told[1])):
        raise _unfit(file.parent, f"its file has the tensor '{strange[0]}', which is not its own or has no place")


def _unfit(folder: Path, reason: str) -> MultituneError:
    return MultituneError(
        f"The adapter does not fit its base: {reason}.".replace("..", "."),
        str(folder),
        "Check that base_model_name_or_path in adapter_config.json is the model it was trained on, and that all files "
        "of the folder are of one adapter.",
    )


def _carrier(model: Any) -> Any:
    """Return what transformers or peft saves: the model, or the encoder below the heads."""
    return model.encoder if isinstance(model, MultiTaskEncoder) else model


def _write(backbone: Backbone, folder: Path, merged: bool, delta: bool, name: str) -> None:
    """Write the model without prompts of tasks, and these beside it; ``name`` is where the folder will stand."""
    from multitune.models.task_prompts import save_prompts, without_prompts

    with without_prompts(backbone.model) as prompts:
        _write_model(backbone, folder, merged, delta)
    save_prompts(prompts, folder, base=name, task_type="SEQ_2_SEQ_LM" if backbone.form == "seq2seq" else "CAUSAL_LM")


def _write_model(backbone: Backbone, folder: Path, merged: bool, delta: bool) -> None:
    adapted = hasattr(_carrier(backbone.model), "peft_config")
    whole = merged_model(backbone) if adapted and merged else _carrier(backbone.model)
    if delta:
        save_trained(whole, folder)
    else:
        whole.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    if isinstance(backbone.model, MultiTaskEncoder):
        save_heads(backbone.model, folder)
    describe(folder, backbone.form, backbone.config, backbone.rounds, backbone.tasks)
    if adapted and not merged and (digest := base_digest(backbone.config)) is not None:
        _write_description(folder, description_of(folder) | {BASE_DIGEST: digest})


def describe(folder: Path, form: str, base: ModelConfig, rounds: int, tasks: Sequence[Task]) -> None:
    """Write beside a model what transformers and peft do not keep."""
    if base.name != "tiny" and Path(base.name).expanduser().is_dir():
        base = base.model_copy(update={"name": resolve(base)})  # loads from any working directory
    described = {
        "form": form,
        "model": base.model_dump(mode="json"),
        "rounds": rounds,
        "tasks": [_without_data(task).model_dump(mode="json") for task in tasks],
    }
    _write_description(folder, described)


def _write_description(folder: Path, described: dict[str, Any]) -> None:
    (folder / DESCRIPTION_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _without_data(task: Task) -> Task:
    """A model says how it is asked, not where the data lay."""
    return task.model_copy(update={"train": None, "validation": None, "test": None})


def description_of(folder: Path) -> dict[str, Any]:
    """Return what `describe` wrote; {} beside models of other programs."""
    file = folder / DESCRIPTION_FILE
    return read_json(file) if file.is_file() else {}


def base_of_adapter(folder: Path) -> ModelConfig:
    """Return the model that a saved adapter belongs to, loaded as it was when the adapter was trained.

    Raises:
        MultituneError: the adapter does not say.
    """
    if told := description_of(folder):
        return ModelConfig.model_validate(told["model"])
    described = read_json(folder / "adapter_config.json")
    base = described.get("base_model_name_or_path")
    if not base:
        raise MultituneError(
            "The adapter does not say which model it belongs to.",
            str(folder / "adapter_config.json"),
            "Write the path or hub id of its base under base_model_name_or_path.",
        )
    return ModelConfig(name=base, revision=described.get("revision"))
