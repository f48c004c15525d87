"""Training the adapter of a model further: on the same tasks, or few-shot on tasks that it has not seen.

Mixtures of modules by task (arXiv:2211.03831, section 4) can go on in three ways: modules and routing together (MHR),
the routing alone (MHR-z), or the average of the modules as plain LoRA, without routing (MHR-mu).
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.methods import NOT_CONTINUED
from multitune.errors import MultituneError

if TYPE_CHECKING:
    from multitune.models.loading import Backbone


def continued(first: AdaptationConfig, config: AdaptationConfig) -> AdaptationConfig:
    """Return what trains where a step goes on with an adapter; ``config`` itself where only the model could tell.

    Args:
        first: what the adapter is.
        config: ``continue`` with its options.
    """
    trains = config.options.get("trains", "all")
    if first.method != "mhr" or trains == "all":
        return first
    if trains == "routing":
        return AdaptationConfig(method="mhr", budget=first.budget, **first.options | {"trains": "routing"})
    if first.budget is not None:
        return config  # the rank is known once the model is
    kept = {name: first.options[name] for name in ("r", "target_modules") if name in first.options}
    return AdaptationConfig(method="lora", **{"r": 1, **kept})


def continue_adapter(backbone: Backbone, config: AdaptationConfig, *, seed: int) -> Backbone:
    """Return a backbone whose own adapter trains further, and nothing else.

    Args:
        backbone: loaded with its adapter, ready to train (``load_saved(folder, trainable=True)``).
        config: ``continue``. ``trains`` is of mixtures alone; ``tasks`` are those of the training, and the ones that
            a mixture does not know get almost uniform mixtures of their own.
        seed: of new mixtures.

    Raises:
        MultituneError: the model has no adapter, or one that cannot be trained further; ``trains`` for an adapter that
            does not route by task.
    """
    model = backbone.model
    encoder = backbone.form == "encoder"
    adapted: Any = model.encoder if encoder else model
    where = "adapt.method: continue"
    if not hasattr(adapted, "peft_config"):
        raise MultituneError(
            "The model has no adapter that could be trained further.", where, "Name a method, for example lora."
        )
    method = adapted.active_peft_config.peft_type.value.lower()
    if method in NOT_CONTINUED:
        raise MultituneError(
            f"An adapter of type {method} cannot be trained further: {NOT_CONTINUED[method]}.",
            where,
            "Train it anew, with the rows of both trainings.",
        )
    trains = config.options.get("trains", "all")
    if method != "mhr":
        if "trains" in config.options:
            raise MultituneError(
                f"An adapter of type {method} has no routing that could train alone.",
                f"adapt.trains: {trains}",
                "Remove it; trains is of adapters that mix modules by task (mhr).",
            )
        return backbone
    if trains == "average":
        adapted = _average(adapted)
    else:
        from multitune.models.tuners.mhr_tasks import new_tasks

        try:
            new_tasks(adapted, config.options.get("tasks", ()), seed=seed, trains=trains, keep_known=True)
        except ValueError as error:
            raise MultituneError(f"The mixture cannot go on: {error}.", where, "Train a new adapter.") from error
    if encoder:
        model.encoder = adapted
        return backbone
    return dataclasses.replace(backbone, model=adapted)


def _average(adapted: Any) -> Any:
    """Return the base with the average of a mixture's modules as trainable LoRA."""
    from peft import PeftModel

    from multitune.models.pretrained import peft_warnings_logged
    from multitune.models.tuners.mhr_tasks import export_lora

    with tempfile.TemporaryDirectory() as folder, peft_warnings_logged():
        export_lora(adapted, Path(folder))
        return PeftModel.from_pretrained(adapted.unload(), folder, is_trainable=True)
