"""Whether the models of slices can be stacked: one architecture, the same tensors in every layer, one vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from multitune.errors import MultituneError
from multitune.models.architecture import architecture_index
from multitune.weights.checkpoints import FLOATS, Checkpoint
from multitune.weights.config import MergeConfig
from multitune.weights.matching import (
    is_output,
    listed,
    match_adapter,
    refuse_other_kind,
    ties_embeddings,
    token_embedding,
)
from multitune.weights.vocabulary import reconcile


def check_sliced(config: MergeConfig, leader: Checkpoint, models: Mapping[str, Checkpoint]) -> None:
    """Check the models of slices against the leader.

    Raises:
        MultituneError: another architecture, tensors that the leader has not, another vocabulary, an adapter that does
            not belong to the leader.
    """
    places = architecture_index(leader.shapes, leader.config)
    names = list(leader.names)
    embedding = token_embedding(leader, places)
    known = {_within_layer(name, place.stack, place.layer) for name, place in places.items()}
    whole = []
    for model in models.values():
        if model.adapter is not None:
            found = match_adapter(leader, names, model)
            if any(origin.name != name for name, origin in found.items()):
                raise MultituneError(
                    "The adapter calls the tensors of its base otherwise than the base's files do.",
                    f"{model.folder} against {leader.folder}",
                    "Merge the adapter into its base first, and stack layers of the result.",
                )
            continue
        refuse_other_kind(model, leader)
        whole.append(model)
        own = architecture_index(model.shapes, model.config)
        besides = [
            name
            for name, place in own.items()
            if model.entries[name].dtype in FLOATS
            and _within_layer(name, place.stack, place.layer) not in known
            and not (is_output(name) and ties_embeddings(model))
        ]
        if besides:
            raise MultituneError(
                f"The model has besides {listed(besides)}, which the first model of the slices lacks.",
                f"{model.folder} against {leader.folder}",
                "Stack layers of models with the same tensors.",
            )
    if embedding is None:
        return
    rows = {each.folder: each.entries[embedding].shape[0] for each in [leader, *whole] if embedding in each.entries}
    if reconcile("refuse" if config.vocabulary == "refuse" else "base", leader, whole, rows) is not None:
        raise MultituneError(
            "The models of the slices have different vocabularies.",
            "vocabulary",
            "Stack layers of models with one tokenizer.",
        )


def _within_layer(name: str, stack: str, layer: int | None) -> str:
    return name if layer is None else name.removeprefix(f"{stack}.{layer}.")
