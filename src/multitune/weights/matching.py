"""Which tensor of a model is which tensor of the result: by name, with tied output layers and adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multitune.errors import MultituneError
from multitune.models.architecture import TensorPlace, architecture_index
from multitune.weights.checkpoints import FLOATS, Checkpoint

if TYPE_CHECKING:
    import numpy as np

LISTED = 5
"""Names that an error quotes; it counts the others."""


@dataclass(frozen=True, slots=True)
class Origin:
    """One tensor of one input.

    Attributes:
        checkpoint: of the input.
        name: in its files (of an adapter: in its base).
        rows: where vocabularies differ: the tensor's row for each row of the result, -1 where it has none.
        others: whose mean stands in for rows that it has not.
    """

    checkpoint: Checkpoint
    name: str
    rows: np.ndarray | None = None
    others: tuple[Origin, ...] = ()


def ties_embeddings(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.config.get("tie_word_embeddings", False))


def is_output(name: str) -> bool:
    return name.endswith(("lm_head.weight", "embed_out.weight"))


def is_tied_head(
    checkpoint: Checkpoint, name: str, places: Mapping[str, TensorPlace], left_out: dict[str, str]
) -> bool:
    """Tell whether a stored output layer is its embedding once more, and note that it is left out."""
    if ties_embeddings(checkpoint) and is_output(name) and token_embedding(checkpoint, places) not in (None, name):
        left_out[f"{checkpoint.folder.name}: {name}"] = "tied to the embedding, which is merged once"
        return True
    return False


def token_embedding(checkpoint: Checkpoint, places: Mapping[str, TensorPlace]) -> str | None:
    """Return the name of the token embedding."""
    ends = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "shared.weight")
    found = [name for name in checkpoint.names if name.endswith(ends) and name in places]
    return found[0] if found else None


def token_tables(checkpoint: Checkpoint, places: Mapping[str, TensorPlace]) -> set[str]:
    """Return the tensors with one row per token: the embedding, the output layer and its bias."""
    embedding = token_embedding(checkpoint, places)
    if embedding is None:
        return set()
    rows = checkpoint.entries[embedding].shape[0]
    return {
        name
        for name, place in places.items()
        if place.layer is None
        and checkpoint.entries[name].shape[:1] == (rows,)
        and (place.category == "head" or is_output(name) or place.unit == places[embedding].unit)
        and (name == embedding or "position" not in name)
    }


def match(
    leader: Checkpoint,
    names: Sequence[str],
    model: Checkpoint,
    places: Mapping[str, TensorPlace],
    left_out: dict[str, str],
    tables: Set[str] = frozenset(),
) -> dict[str, Origin]:
    """Return where a model has each tensor of the result.

    Raises:
        MultituneError: another architecture, tensors missing or too many, other shapes or kinds of number.
    """
    if model.adapter is not None:
        return match_adapter(leader, names, model)
    where = f"{model.folder} against {leader.folder}"
    refuse_other_kind(model, leader)
    found: dict[str, Origin] = {}
    missing = []
    for name in names:
        if name in model.entries:
            found[name] = Origin(model, name)
        elif is_output(name) and ties_embeddings(model) and (embedding := token_embedding(model, places)) is not None:
            found[name] = Origin(model, embedding)  # the model's output layer is its embedding
        elif leader.entries[name].dtype not in FLOATS:
            found[name] = Origin(leader, name)  # position ids and the like, which libraries once saved
        else:
            missing.append(name)
    counts = [name for name in model.names if name not in found and model.entries[name].dtype not in FLOATS]
    left_out.update({f"{model.folder.name}: {name}": "integers that the result does not need" for name in counts})
    extra = [
        name
        for name in model.names
        if name not in found
        and name not in counts
        and not is_tied_head(model, name, {**places, **architecture_index(model.shapes)}, left_out)
        and not (ties_embeddings(leader) and ties_embeddings(model) and is_output(name))
    ]
    if missing or extra:
        parts = [f"lacks {listed(missing)}"] * bool(missing) + [f"has besides {listed(extra)}"] * bool(extra)
        raise MultituneError(
            f"The model {' and '.join(parts)}.", where, "Merge models with the same tensors; check how they were saved."
        )
    for name, origin in found.items():
        ours, theirs = leader.entries[name], origin.checkpoint.entries[origin.name]
        if ours.shape[name in tables :] != theirs.shape[name in tables :]:
            raise MultituneError(
                f"The tensor '{name}' has the shape {list(theirs.shape)} and not {list(ours.shape)}.",
                where,
                "Merge models of one size.",
            )
        if (ours.dtype in FLOATS) != (theirs.dtype in FLOATS):
            raise MultituneError(
                f"The tensor '{name}' is {theirs.dtype} and not {ours.dtype}.",
                where,
                "Merge models that are saved alike.",
            )
    return found


def refuse_other_kind(model: Checkpoint, leader: Checkpoint) -> None:
    """Refuse a model of another architecture.

    Raises:
        MultituneError: with both.
    """
    kinds = [each.config.get("model_type") for each in (model, leader)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise MultituneError(
            f"The models are of different architectures: {kinds[0]} and {kinds[1]}.",
            f"{model.folder} against {leader.folder}",
            "Merge models that were tuned from one base.",
        )


def match_adapter(leader: Checkpoint, names: Sequence[str], adapter: Checkpoint) -> dict[str, Origin]:
    """Return the adapter's own names for the base's; peft sees names as the loaded model has them, which may carry a
    prefix that the base's files do not have, or lack one."""
    told = [*adapter.targets, *adapter.replaced]
    alias = {_same_ending(name, names) or name: name for name in told}
    where = f"{adapter.folder} against {leader.folder}"
    lost = sorted(theirs for ours, theirs in alias.items() if ours not in leader.entries)
    if lost:
        raise MultituneError(
            f"The adapter changes {listed(lost)}, which the base does not have.",
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


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(f"'{name}'" for name in names[:LISTED]) + more
