"""Which tensor of which model becomes which tensor of the result: found from headers, before any data is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.models.architecture import TensorPlace, architecture_index
from multitune.weights.checkpoints import FLOATS, Checkpoint, Entry
from multitune.weights.config import MergeConfig, Slice
from multitune.weights.half_reset import take_halves
from multitune.weights.matching import Origin, is_tied_head, match, token_embedding, token_tables
from multitune.weights.parameters import BASE_IF_GIVEN, CHOOSES, WITHOUT_BASE, refuse_unmatched, resolved
from multitune.weights.slices import check_sliced
from multitune.weights.vocabulary import Vocabulary, reconcile

SPELLED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


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
        added_tokens: what the leader's tokenizer must learn: (token, id, whether it is special).
    """

    config: MergeConfig
    leader: Checkpoint
    inputs: list[Checkpoint]
    jobs: list[Job]
    left_out: dict[str, str]
    changes: dict[str, Any] = field(default_factory=dict)
    added_tokens: list[tuple[str, int, bool]] = field(default_factory=list)


def arrange(config: MergeConfig) -> Arrangement:
    """Open all inputs and match their tensors.

    Raises:
        MultituneError: an input that cannot be opened, two that are one folder, architectures, tensors, shapes or
            vocabularies that differ, an adapter without a base, slices that do not fit.
    """
    base = Checkpoint.open(config.base) if config.base is not None else None
    named = [each.model for each in config.models] or [each.model for part in config.slices for each in part.sources]
    models = {name: Checkpoint.open(name) for name in dict.fromkeys(named)}
    _check_distinct(config, base, models)
    leader = base or next((each for each in models.values() if each.adapter is None), None)
    if leader is None or leader.adapter is not None:
        raise MultituneError(
            "There are only adapters and no whole model that they belong to.",
            ", ".join(str(each.folder) for each in models.values()),
            "Give the model that the adapters were trained on as base.",
        )
    on_task_vectors = config.method not in WITHOUT_BASE | CHOOSES or (
        config.method in BASE_IF_GIVEN and base is not None
    )
    has_adapter = any(each.adapter is not None for each in models.values())
    reference = _Reference(leader, on_task_vectors, config.lines is not None or config.method in CHOOSES or has_adapter)
    inputs = [*([base] if base else []), *(each for each in models.values() if each is not leader or base is None)]
    if config.slices:
        check_sliced(config, leader, models)
        found = _arrange_slices(config, reference, models, inputs)
    else:
        found = _arrange_models(config, reference, list(models.values()), inputs)
    refuse_unmatched(config, [job.name for job in found.jobs])
    return found


@dataclass(frozen=True)
class _Reference:
    """The leader, and what its tensors are for: the base of task vectors, an anchor, or neither."""

    leader: Checkpoint
    on_task_vectors: bool
    anchored: bool

    def of(self, origin: Origin) -> tuple[Origin | None, Origin | None]:
        """Return a job's base and anchor."""
        return (origin, None) if self.on_task_vectors else (None, origin if self.anchored else None)


def _arrange_models(
    config: MergeConfig, reference: _Reference, models: Sequence[Checkpoint], inputs: list[Checkpoint]
) -> Arrangement:
    """Match whole models, tensor by tensor."""
    leader = reference.leader
    places = architecture_index(leader.shapes, leader.config)
    left_out: dict[str, str] = {}
    names = [name for name in leader.names if not is_tied_head(leader, name, places, left_out)]
    tables = token_tables(leader, places)
    found = [match(leader, names, each, places, left_out, tables) for each in models]
    vocabulary = _vocabulary(config, leader, models, found, places)
    jobs = []
    for name in names:
        entry, origins = leader.entries[name], [origin[name] for origin in found]
        own, shape = Origin(leader, name), entry.shape
        if vocabulary is not None and name in tables:
            own, origins = _remapped(own, origins, vocabulary)
            shape = (vocabulary.rows, *shape[1:])
        parameters = resolved(
            config.method,
            [each.parameters for each in config.models],
            [config.parameters],
            places[name],
            config.compat,
        )
        jobs.append(_job(config, name, entry.dtype, shape, places[name], reference, own, origins, parameters))
    if config.method == "half_reset":
        jobs = take_halves(jobs, config.seed)
    changes: dict[str, Any] = {"vocab_size": vocabulary.rows} if vocabulary else {}
    return Arrangement(
        config, leader, inputs, jobs, left_out, changes, vocabulary.added if vocabulary is not None else []
    )


def _job(
    config: MergeConfig,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    place: TensorPlace,
    reference: _Reference,
    own: Origin,
    origins: Sequence[Origin],
    parameters: dict[str, Any],
) -> Job:
    merged = dtype in FLOATS
    written = SPELLED[config.dtype] if config.dtype and merged else dtype
    base, anchor = reference.of(own)
    return Job(name, written, shape, place, base, tuple(origins), parameters, merged, anchor)


def _vocabulary(
    config: MergeConfig,
    leader: Checkpoint,
    models: Sequence[Checkpoint],
    found: Sequence[Mapping[str, Origin]],
    places: Mapping[str, TensorPlace],
) -> Vocabulary | None:
    """Match the tokens of whole models; adapters have those of their base."""
    embedding = token_embedding(leader, places)
    if embedding is None:
        return None
    rows = {leader.folder: leader.entries[embedding].shape[0]}
    whole = []
    for model, origins in zip(models, found, strict=True):
        if model.adapter is None:
            whole.append(model)
            rows[model.folder] = model.entries[origins[embedding].name].shape[0]
    vocabulary = reconcile(config.vocabulary, leader, whole, rows)
    adapter = next((each for each in models if each.adapter is not None), None)
    if vocabulary is not None and adapter is not None:
        raise MultituneError(
            "Models with other vocabularies and adapters cannot be merged at once.",
            f"{adapter.folder} with vocabulary: {config.vocabulary}",
            "Merge the adapter into its base first (task_arithmetic with this one model).",
        )
    return vocabulary


def _remapped(own: Origin, origins: Sequence[Origin], vocabulary: Vocabulary) -> tuple[Origin, list[Origin]]:
    """Return the origins of a token table with rows matched: the leader's falls back to the models' mean, a model's to
    the leader's."""
    plain = [replace(origin, rows=vocabulary.maps[origin.checkpoint.folder]) for origin in origins]
    own = replace(own, rows=vocabulary.maps[own.checkpoint.folder])
    others = tuple(origin for origin in plain if origin.checkpoint is not own.checkpoint)
    own = replace(own, others=others)
    return own, [replace(origin, others=(own,)) if origin.checkpoint is not own.checkpoint else own for origin in plain]


def _arrange_slices(
    config: MergeConfig, reference: _Reference, models: Mapping[str, Checkpoint], inputs: list[Checkpoint]
) -> Arrangement:
    """Stack the slices' layers, with the embeddings of the first slice and what is behind the layers of the last."""
    leader = reference.leader
    places = architecture_index(leader.shapes, leader.config)
    stacks = {place.stack: place.layers for place in places.values() if place.layer is not None}
    if len(stacks) != 1:
        raise MultituneError(
            f"Slices need a model with one list of layers, and this one has {len(stacks)}.",
            str(leader.folder),
            "Merge whole models (models in place of slices).",
        )
    stack = next(iter(stacks))
    left_out: dict[str, str] = {}
    names = [name for name in leader.names if not is_tied_head(leader, name, places, left_out)]
    outside = [name for name in names if places[name].layer is None]
    total = sum(part.sources[0].layers[1] - part.sources[0].layers[0] for part in config.slices)
    jobs = []

    def add(
        name: str, place: TensorPlace, own: str, origins: list[Origin], part: Slice, schedule_place: TensorPlace
    ) -> None:
        entry = leader.entries[own]
        wrong = next((each for each in origins if _shape_of(each, entry) != entry.shape), None)
        if wrong is not None:
            raise MultituneError(
                f"The tensor '{wrong.name}' is missing or has another shape than '{own}'.",
                f"{wrong.checkpoint.folder} against {leader.folder}",
                "Stack layers of one size.",
            )
        parameters = resolved(
            config.method,
            [each.parameters for each in part.sources],
            [part.parameters, config.parameters],
            schedule_place,
            config.compat,
        )
        own_origin = Origin(leader, own)
        jobs.append(_job(config, name, entry.dtype, entry.shape, place, reference, own_origin, origins, parameters))

    number = 0
    kept_lists: dict[str, list[Any]] = {key: [] for key in LISTS_BY_LAYER if isinstance(leader.config.get(key), list)}
    for index, part in enumerate(config.slices):
        length = _slice_length(part, models, stack, index, stacks[stack])
        for offset in range(length):
            first = part.sources[0].layers[0] + offset
            template = f"{stack}.{min(first, stacks[stack] - 1)}."
            for key, kept in kept_lists.items():
                kept.append(models[part.sources[0].model].config.get(key, leader.config[key])[first])
            for own in [name for name in names if name.startswith(template)]:
                rest = own.removeprefix(template)
                name = f"{stack}.{number}.{rest}"
                origins = [
                    Origin(models[each.model], f"{stack}.{each.layers[0] + offset}.{rest}") for each in part.sources
                ]
                place = replace(places[own], name=name, layer=number, layers=total)
                # mergekit counts depth within the slice
                within = replace(place, layer=offset, layers=length) if config.compat == "mergekit" else place
                add(name, place, own, origins, part, within)
            number += 1
    for name in outside:
        part = config.slices[0 if places[name].category == "embedding" else -1]
        add(name, places[name], name, [Origin(models[each.model], name) for each in part.sources], part, places[name])
    changes: dict[str, Any] = {key: total for key in LAYER_COUNTS if key in leader.config}
    return Arrangement(config, leader, inputs, jobs, left_out, changes | kept_lists)


LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

LISTS_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Entries of config.json with one value per layer."""


def _shape_of(origin: Origin, entry: Entry) -> tuple[int, ...] | None:
    if origin.checkpoint.adapter is not None:
        return entry.shape  # what an adapter does not change is zero
    found = origin.checkpoint.entries.get(origin.name)
    return found.shape if found is not None else None


def _slice_length(part: Slice, models: Mapping[str, Checkpoint], stack: str, index: int, of_leader: int) -> int:
    """Return how many layers a slice has; an adapter has those of its base, the leader.

    Raises:
        MultituneError: sources of different lengths, or layers that a model does not have.
    """
    lengths = {each.layers[1] - each.layers[0] for each in part.sources}
    for each in part.sources:
        checkpoint = models[each.model]
        numbers = {
            int(name.removeprefix(f"{stack}.").split(".")[0])
            for name in checkpoint.names
            if name.startswith(f"{stack}.") and name.removeprefix(f"{stack}.").split(".")[0].isdigit()
        }
        layers = max(numbers, default=-1) + 1 if checkpoint.adapter is None else of_leader
        if each.layers[1] <= each.layers[0] or each.layers[1] > layers:
            raise MultituneError(
                f"The layers {each.layers[0]} to {each.layers[1]} (the last not among them) are not in a model "
                f"of {layers} layers.",
                f"slices[{index}]: {each.model}",
                "Give layers that the model has.",
            )
    if len(lengths) != 1:
        raise MultituneError(
            f"The sources of a slice have {', '.join(map(str, sorted(lengths)))} layers.",
            f"slices[{index}]",
            "Give equally many layers of each source.",
        )
    return lengths.pop()


def _check_distinct(config: MergeConfig, base: Checkpoint | None, models: Mapping[str, Checkpoint]) -> None:
    seen: dict[Path, str] = {}
    if base is not None and config.method not in WITHOUT_BASE:
        seen[base.folder] = "the base"
    for name, checkpoint in models.items():
        if checkpoint.folder in seen:
            raise MultituneError(
                f"The folder '{checkpoint.folder}' is given twice.",
                f"{seen[checkpoint.folder]} and {name}",
                "Give it once, with a larger weight if that is meant.",
            )
        seen[checkpoint.folder] = name


def as_json(config: MergeConfig) -> str:
    """Return a merge as one line of JSON, defaults left out."""
    return json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
