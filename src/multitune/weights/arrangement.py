"""Which tensor of which model becomes which tensor of the result: found from headers, before any data is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.models.architecture import TensorPlace, architecture_index
from multitune.weights.checkpoints import FLOATS, Checkpoint
from multitune.weights.config import MergeConfig
from multitune.weights.half_reset import take_halves
from multitune.weights.parameters import BASE_IF_GIVEN, CHOOSES, WITHOUT_BASE, resolved

LISTED = 5
"""Names that an error quotes; it counts the others."""

SPELLED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Origin:
    """One tensor of one input: the checkpoint and the name there (of an adapter: the name in its base)."""

    checkpoint: Checkpoint
    name: str


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the result.

    Attributes:
        name: in the result.
        dtype: in the result, as safetensors spells it.
        shape: of the tensor.
        place: in the result's architecture.
        base: where the reference of the task vectors is; None for methods on weights.
        models: one origin per model.
        parameters: of the method, resolved for this tensor.
        merged: False for integers, which are copied where all models have the same.
        anchor: where ``base`` is None: what adapters add to, and what LiNeS scales from; None: nothing of the kind.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: TensorPlace
    base: Origin | None
    models: tuple[Origin, ...]
    parameters: dict[str, Any]
    merged: bool
    anchor: Origin | None = None


@dataclass(frozen=True)
class Arrangement:
    """All tensors of a merge.

    Attributes:
        config: what was asked for.
        leader: the checkpoint whose config, tokenizer and types the result takes: the base, else the first model.
        inputs: all checkpoints, the base first.
        jobs: tensors of the result in the leader's order.
        left_out: tensors of an input that the result does not have, with the reason.
        changes: what the result's config.json says otherwise than the leader's.
    """

    config: MergeConfig
    leader: Checkpoint
    inputs: list[Checkpoint]
    jobs: list[Job]
    left_out: dict[str, str]
    changes: dict[str, Any] = field(default_factory=dict)


def arrange(config: MergeConfig) -> Arrangement:
    """Open all inputs and match their tensors.

    Raises:
        MultituneError: an input that cannot be opened, two that are one folder, architectures, tensors or shapes that
            differ, an adapter without a base.
    """
    base = Checkpoint.open(config.base) if config.base is not None else None
    models = [Checkpoint.open(each.model) for each in config.models]
    inputs = [*([base] if base else []), *models]
    _check_distinct(config, base, models)
    leader = base or next((each for each in models if each.adapter is None), None)
    if leader is None or leader.adapter is not None:
        raise MultituneError(
            "There are only adapters and no whole model that they belong to.",
            ", ".join(str(each.folder) for each in inputs),
            "Give the model that the adapters were trained on as base.",
        )
    places = architecture_index(leader.shapes, leader.config)
    left_out: dict[str, str] = {}
    names = [name for name in leader.names if not _is_tied_head(leader, name, places, left_out)]
    origins = [_match(leader, names, each, places, left_out) for each in models]
    on_task_vectors = config.method not in WITHOUT_BASE | CHOOSES or (
        config.method in BASE_IF_GIVEN and base is not None
    )
    anchored = config.lines is not None or config.method in CHOOSES or any(each.adapter is not None for each in models)
    jobs = []
    for name in names:
        entry = leader.entries[name]
        merged = entry.dtype in FLOATS
        parameters = resolved(
            config.method,
            [each.parameters for each in config.models],
            [config.parameters],
            places[name],
            config.compat,
        )
        jobs.append(
            Job(
                name,
                SPELLED[config.dtype] if config.dtype and merged else entry.dtype,
                entry.shape,
                places[name],
                Origin(leader, name) if on_task_vectors else None,
                tuple(origin[name] for origin in origins),
                parameters,
                merged,
                Origin(leader, name) if anchored and not on_task_vectors else None,
            )
        )
    if config.method == "half_reset":
        jobs = take_halves(jobs, config.seed)
    return Arrangement(config, leader, inputs, jobs, left_out)


def _check_distinct(config: MergeConfig, base: Checkpoint | None, models: Sequence[Checkpoint]) -> None:
    seen: dict[Path, str] = {}
    if base is not None and config.method not in WITHOUT_BASE:
        seen[base.folder] = "the base"
    for number, checkpoint in enumerate(models):
        if checkpoint.folder in seen:
            raise MultituneError(
                f"The folder '{checkpoint.folder}' is given twice.",
                f"{seen[checkpoint.folder]} and models[{number}]",
                "Give it once, with a larger weight if that is meant.",
            )
        seen[checkpoint.folder] = f"models[{number}]"


def _ties(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.config.get("tie_word_embeddings", False))


def _is_output(name: str) -> bool:
    return name.endswith(("lm_head.weight", "embed_out.weight"))


def _is_tied_head(
    checkpoint: Checkpoint, name: str, places: Mapping[str, TensorPlace], left_out: dict[str, str]
) -> bool:
    """Tell whether a stored output layer is its embedding once more, and note that it is left out."""
    if _ties(checkpoint) and _is_output(name) and _embedding(checkpoint, places) not in (None, name):
        left_out[f"{checkpoint.folder.name}: {name}"] = "tied to the embedding, which is merged once"
        return True
    return False


def _embedding(checkpoint: Checkpoint, places: Mapping[str, TensorPlace]) -> str | None:
    """Return the name of the token embedding."""
    ends = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "shared.weight")
    found = [name for name in checkpoint.names if name.endswith(ends) and name in places]
    return found[0] if found else None


def _match(
    leader: Checkpoint,
    names: Sequence[str],
    model: Checkpoint,
    places: Mapping[str, TensorPlace],
    left_out: dict[str, str],
) -> dict[str, Origin]:
    """Return where a model has each tensor of the result.

    Raises:
        MultituneError: another architecture, tensors missing or too many, other shapes or kinds of number.
    """
    if model.adapter is not None:
        return _match_adapter(leader, names, model)
    where = f"{model.folder} against {leader.folder}"
    kinds = [each.config.get("model_type") for each in (model, leader)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise MultituneError(
            f"The models are of different architectures: {kinds[0]} and {kinds[1]}.",
            where,
            "Merge models that were tuned from one base.",
        )
    found: dict[str, Origin] = {}
    missing = []
    for name in names:
        if name in model.entries:
            found[name] = Origin(model, name)
        elif _is_output(name) and _ties(model) and (embedding := _embedding(model, places)) is not None:
            found[name] = Origin(model, embedding)  # the model's output layer is its embedding
        else:
            missing.append(name)
    extra = [
        name
        for name in model.names
        if name not in found
        and not _is_tied_head(model, name, {**places, **architecture_index(model.shapes)}, left_out)
        and not (_ties(leader) and _ties(model) and _is_output(name))
    ]
    if missing or extra:
        parts = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has besides {_listed(extra)}"] * bool(extra)
        raise MultituneError(
            f"The model {' and '.join(parts)}.", where, "Merge models with the same tensors; check how they were saved."
        )
    for name, origin in found.items():
        ours, theirs = leader.entries[name], model.entries[origin.name]
        if ours.shape != theirs.shape:
            raise MultituneError(
                f"The tensor '{name}' has the shape {list(theirs.shape)} and not {list(ours.shape)}.",
                where,
                "If the vocabularies differ, say how to resolve it (vocabulary: base or union); else merge models of "
                "one size.",
            )
        if (ours.dtype in FLOATS) != (theirs.dtype in FLOATS):
            raise MultituneError(
                f"The tensor '{name}' is {theirs.dtype} and not {ours.dtype}.",
                where,
                "Merge models that are saved alike.",
            )
    return found


def _match_adapter(leader: Checkpoint, names: Sequence[str], adapter: Checkpoint) -> dict[str, Origin]:
    """Return the adapter's own names for the base's; peft sees names as the loaded model has them, which may carry a
    prefix that the base's files do not have, or lack one."""
    told = [*adapter.targets, *adapter.replaced]
    alias = {_same_ending(name, names) or name: name for name in told}
    where = f"{adapter.folder} against {leader.folder}"
    lost = sorted(theirs for ours, theirs in alias.items() if ours not in leader.entries)
    if lost:
        raise MultituneError(
            f"The adapter changes {_listed(lost)}, which the base does not have.",
            where,
            "Give the model that the adapter was trained on as base.",
        )
    for ours, theirs in alias.items():
        is_factored = theirs in adapter.targets
        shape = adapter.factored_shape(theirs) if is_factored else adapter.entries[adapter.replaced[theirs]].shape
        if shape != leader.entries[ours].shape:
            raise MultituneError(
                f"The adapter's change of '{ours}' has the shape {list(shape)} and not "
                f"{list(leader.entries[ours].shape)}.",
                where,
                "Give the model that the adapter was trained on as base.",
            )
    return {name: Origin(adapter, alias.get(name, name)) for name in names}


def _same_ending(name: str, names: Sequence[str]) -> str | None:
    if name in names:
        return name
    ends = [each for each in names if each.endswith(f".{name}") or name.endswith(f".{each}")]
    return ends[0] if len(ends) == 1 else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(f"'{name}'" for name in names[:LISTED]) + more


def as_json(config: MergeConfig) -> str:
    """Return a merge as one line of JSON, defaults left out."""
    return json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
