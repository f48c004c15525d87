"""Task vectors of model folders under the names of a loaded model's parameters.

A checkpoint may call a tensor with or without the prefix of the whole model (``bert.``), and a model with heads has one
of its own (``encoder.``). Nothing is read before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multitune.errors import MultituneError
from multitune.models.heads import MultiTaskEncoder
from multitune.weights.checkpoints import Checkpoint
from multitune.weights.learned.vectors import DenseVector, FactoredVector, TaskVector, exact


def module_tensors(model: Any, folder: Path) -> dict[str, Tensor]:
    """Return a folder's tensors, memory-mapped, under the model's names: the ``base`` of ``composed``."""
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.tensor(own) for name, own in _names(model, checkpoint.names).items()}


def module_vector(model: Any, base: Path, folder: Path) -> TaskVector:
    """Return what a fine-tuned model, or a LoRA adapter, changed in the base, under the model's names.

    Args:
        model: the base as it is loaded, with heads or without.
        base: folder of the base; of the same names as any whole model's.
        folder: of the fine-tuned model or adapter.

    Raises:
        MultituneError: a tensor of the base that the other has not, or in another shape; an adapter that brings tensors
            whole; and what ``Checkpoint.open`` raises.
    """
    before, after = Checkpoint.open(base), Checkpoint.open(folder)
    names = _names(model, before.names)
    if after.adapter is not None:
        return _factored(after, {own: name for name, own in names.items()}, folder)
    others = _names(model, after.names)
    for name, own in names.items():
        if name not in others:
            raise MultituneError(f"The model has no tensor '{own}'.", str(folder), "Merge models of one base.")
        if after.shapes[others[name]] != before.shapes[own]:
            raise MultituneError(
                f"'{own}' has shape {list(after.shapes[others[name]])}, in the base {list(before.shapes[own])}.",
                str(folder),
                "Merge models of one base.",
            )

    def read(name: str) -> Tensor:
        tuned, pretrained = after.tensor(others[name]), before.tensor(names[name])
        return tuned.to(exact(tuned.dtype)) - pretrained.to(exact(tuned.dtype))

    return DenseVector({name: before.shapes[own] for name, own in names.items()}, read)


def _factored(adapter: Checkpoint, names: dict[str, str], folder: Path) -> FactoredVector:
    if adapter.replaced:
        raise MultituneError(
            f"The adapter brings the whole tensor '{next(iter(adapter.replaced))}', which has no factors.",
            str(folder),
            "Merge the adapter into its base first (export: merged).",
        )
    if unknown := sorted(adapter.targets.keys() - names.keys()):
        raise MultituneError(
            f"The base has no tensor '{unknown[0]}', which the adapter changes.",
            str(folder),
            "Merge models of one base.",
        )
    return FactoredVector({names[target]: adapter.factored(target) for target in adapter.targets})


def _names(model: Any, found: Iterable[str]) -> dict[str, str]:
    """Return the floating-point parameters of a model that a checkpoint holds: the model's name -> the checkpoint's."""
    known = set(found)
    carrier, before = (model.encoder, "encoder.") if isinstance(model, MultiTaskEncoder) else (model, "")
    prefix = f"{carrier.base_model_prefix}."
    names = {}
    for name, parameter in carrier.named_parameters():
        if not isinstance(parameter, torch.Tensor) or not parameter.is_floating_point():
            continue
        for own in (name, f"{prefix}{name}", name.removeprefix(prefix)):
            if own in known:
                names[f"{before}{name}"] = own
                break
    return names
