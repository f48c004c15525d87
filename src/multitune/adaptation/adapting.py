"""Choosing what trains, and counting it."""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.adaptation.alternatives import NotPlaced, instead_of
from multitune.adaptation.config import AdaptationConfig, peft_fields, placed_as
from multitune.adaptation.continuing import continue_adapter
from multitune.adaptation.half import MANIFEST_FILE, freeze, from_manifest, half_round, say
from multitune.adaptation.methods import CONTINUE, WITHOUT_ADAPTER
from multitune.adaptation.updates import UpdateRule, kept_entries
from multitune.errors import MultituneError

if TYPE_CHECKING:
    from torch import Tensor

    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone, ModelFacts
    from multitune.tasks.task import Form, Task

logger = logging.getLogger("multitune.adaptation")

TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}


def adapt(
    backbone: Backbone,
    config: AdaptationConfig,
    *,
    steps: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> Backbone:
    """Return the backbone with what the method trains requiring gradients, and nothing else.

    Args:
        backbone: freshly loaded or fully trained; peft places its layers inside this very model. The heads of an
            encoder always train.
        config: method and options.
        steps: optimiser steps of the run, for methods with a schedule of their own (AdaLoRA's ``total_step``); where
            they are known only later, `schedule_ranks` mends it.
        seed: of the adapters' initial weights; of the half that `half` freezes, together with the backbone's rounds.
        folder: of a run that goes on: where it holds a manifest of this very round, that half is frozen again.

    Raises:
        MultituneError: quantised weights cannot train fully; the model has an adapter already; peft cannot place the
            method on this architecture.
    """
    model = backbone.model
    if config.method in WITHOUT_ADAPTER:
        _refuse_quantised(backbone, config)
    if config.method == "full":
        return backbone
    if config.method == CONTINUE:
        return continue_adapter(backbone, config, seed=seed)
    update = config.update
    if config.method in WITHOUT_ADAPTER and config.budget is not None:
        update = sized_within(config, backbone.config).update
    rule = UpdateRule(config.method, update, seed) if update is not None else None
    if config.method in WITHOUT_ADAPTER and rule is not None:
        return dataclasses.replace(backbone, update=rule)
    if config.half is not None:
        half = half_round(model, config.half, seed=seed, round=backbone.rounds + 1)
        if folder is not None:
            half = from_manifest(half, folder / MANIFEST_FILE)
        freeze(model, half)
        say(half)
        return dataclasses.replace(backbone, half=half)
    encoder = backbone.form == "encoder"
    base = model.encoder if encoder else model
    if hasattr(base, "peft_config"):
        raise MultituneError(
            "The model has an adapter already; a second one would not be saved with the first.",
            f"adapt.method: {config.method}",
            "Train it further with `adapt: continue`, or export the step that made it with `export: merged`.",
        )
    if backbone.config.quantize is not None:
        from peft import prepare_model_for_kbit_training

        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    with _told_what_can(base, backbone.form, config, quantized=backbone.config.quantize is not None):
        sized = sized_within(config, backbone.config) if config.budget is not None else config
        adapted = _place(base, backbone.form, sized, steps, seed)
    if encoder:
        model.encoder = adapted
        return dataclasses.replace(backbone, update=rule)
    return dataclasses.replace(backbone, model=adapted, update=rule)


def trainable_parameters(
    facts: ModelFacts,
    config: AdaptationConfig,
    tasks: Sequence[Task] = (),
    *,
    seed: int = 0,
    round: int = 1,
    advise: bool = True,
) -> int | None:
    """Return how many parameters will train, exactly, without reading weights.

    Args:
        facts: of the model.
        config: method and options.
        tasks: encoders only: resolved tasks, whose heads train too.
        seed, round: of `half`: where matrices differ in size, another half has other parameters.
        advise: whether the error for a method without a place tries which have one.

    Returns:
        None for methods that need the weights' values to be placed (singular value decompositions, for instance),
        and for an adapter whose options are not known (``continue``).

    Raises:
        MultituneError: as `adapt`, where shapes suffice to know.
    """
    from multitune.models.heads import freeze_pooler, task_head
    from multitune.models.pretrained import empty_model

    if config.method == CONTINUE:
        return None
    heads = sum(task_head(task).outputs for task in tasks) * (facts.hidden_size + 1) if facts.form == "encoder" else 0
    model, form = empty_model(facts.config)
    if form == "encoder":
        freeze_pooler(model)
    if config.half is not None:
        return heads + half_round(model, config.half, seed=seed, round=round).trainable
    quantized = facts.config.quantize is not None
    with _told_what_can(model, form, config, quantized=quantized) if advise else nullcontext():
        config = sized_within(config, facts.config)
        if config.method in WITHOUT_ADAPTER and config.update is not None:
            return heads + kept_entries(config.update, _trainable(model))
        if config.method != "full":
            try:
                model = _place(model, form, config, steps=None, seed=0)
            except (NotImplementedError, RuntimeError):
                return None
    return heads + _trainable(model)


def sized_within(config: AdaptationConfig, base: ModelConfig) -> AdaptationConfig:
    """Return the config at the size that its budget allows on a base; how many numbers train is counted on shapes."""
    from multitune.adaptation.budget import within_budget
    from multitune.models.pretrained import empty_model

    if config.budget is not None and config.method in WITHOUT_ADAPTER:  # it is how many entries train
        keep = config.budget if config.budget < 1 else int(config.budget)
        return AdaptationConfig(method=config.method, **config.options, keep=keep)

    def trainable(sized: AdaptationConfig) -> int:
        model, form = empty_model(base)
        try:
            return _trainable(_place(model.requires_grad_(False), form, sized, steps=None, seed=0))
        except (NotImplementedError, RuntimeError) as error:  # torch has no values to decompose without weights
            raise MultituneError(
                f"How many numbers {config.method} trains is known only once the weights are loaded.",
                "adapt.budget",
                "Give the options of the method instead: see multitune methods.",
            ) from error

    return within_budget(config, empty_model(base)[0].num_parameters(), trainable)


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def allocate_ranks(model: Any, step: int) -> None:
    """Let AdaLoRA redistribute its ranks (arXiv:2303.10512, algorithm 1), diff pruning settle; others are left alone.

    Call it after the backward pass of every optimiser step, before gradients are cleared.

    Args:
        model: backbone's model.
        step: optimiser steps done so far.
    """
    adapted = _adapted(model)
    allocate = getattr(getattr(adapted, "base_model", None), "update_and_allocate", None)
    if allocate is not None:
        allocate(step)


def schedule_ranks(model: Any, steps: int) -> None:
    """Stretch AdaLoRA's schedule, or diff pruning's, to the optimiser steps of a run; other models are left alone.

    Call it before the first step. The warm-up and the final phase keep their shares of the whole.
    """
    schedule = getattr(getattr(_adapted(model), "base_model", None), "schedule", None)
    if schedule is not None:
        schedule(steps)
    if not _allocates_ranks(model):
        return
    adapted = _adapted(model)
    config = adapted.active_peft_config
    share = steps / config.total_step
    config.total_step, config.tinit, config.tfinal = steps, int(config.tinit * share), int(config.tfinal * share)
    adapted.base_model.rankallocator.set_total_step(steps)


def penalty(model: Any) -> Tensor | None:
    """Return what a method adds to the loss of an optimiser step, times its weight; None for most.

    AdaLoRA has singular vectors that are not orthogonal, diff pruning the gates that are open.

    Args:
        model: backbone's model.
    """
    own = getattr(getattr(_adapted(model), "base_model", None), "penalty", None)
    return orthogonality(model) if own is None else own()


def orthogonality(model: Any) -> Tensor | None:
    """Return AdaLoRA's penalty on singular vectors that are not orthogonal (arXiv:2303.10512, equation 4), times its
    weight; None for other models.

    As peft computes it inside a forward with labels, which training here does not use: the mean over all A and B of
    the Frobenius norm of their Gram matrix less the identity.

    Args:
        model: backbone's model.
    """
    import torch

    if not _allocates_ranks(model):
        return None
    terms = []
    for name, p in _adapted(model).named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            terms.append(torch.linalg.norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))
    weight: float = _adapted(model).active_peft_config.orth_reg_weight
    return weight * torch.stack(terms).mean()


def rank_state(model: Any) -> dict[str, Tensor]:
    """Return what AdaLoRA has learned of its ranks (importances, their averages, the ranks kept); {} for others."""
    import torch

    if not _allocates_ranks(model):
        return {}
    adapted = _adapted(model)
    allocator = adapted.base_model.rankallocator
    state = {f"{kind}/{name}": p for kind in _STATISTICS for name, p in getattr(allocator, kind).items()}
    pattern = adapted.active_peft_config.rank_pattern or {}
    return state | {f"rank_pattern/{name}": torch.tensor(kept) for name, kept in pattern.items()}


def load_rank_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Give back what `rank_state` returned; models other than AdaLoRA's are left alone."""
    if not _allocates_ranks(model):
        return
    adapted = _adapted(model)
    allocator, config = adapted.base_model.rankallocator, adapted.active_peft_config
    allocator.reset_ipt()
    for key, tensor in state.items():
        kind, name = key.split("/", 1)
        if kind == "rank_pattern":
            config.rank_pattern = {**(config.rank_pattern or {}), name: tensor.tolist()}
        else:
            getattr(allocator, kind)[name] = tensor.to(adapted.device)


_STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _adapted(model: Any) -> Any:
    """Return the PeftModel: the model itself, or the encoder below the heads."""
    return model.encoder if hasattr(model, "heads") else model


def _allocates_ranks(model: Any) -> bool:
    config = getattr(_adapted(model), "active_peft_config", None)
    return config is not None and config.peft_type.value == "ADALORA"


def _refuse_quantised(backbone: Backbone, config: AdaptationConfig) -> None:
    if backbone.config.quantize is not None:
        raise MultituneError(
            "Quantised weights cannot train.",
            f"adapt.method: {config.method}, model.quantize: {backbone.config.quantize}",
            "Choose an adapter (adapt.method: lora), or remove model.quantize.",
        )


@contextmanager
def _told_what_can(base: Any, form: Form, config: AdaptationConfig, *, quantized: bool) -> Iterator[None]:
    """Where a method has no place on a model, say in the error which have."""
    try:
        yield
    except NotPlaced as error:

        def place(empty: Any, other: AdaptationConfig) -> Any:
            return _place(empty, form, other, steps=None, seed=0)

        mend = instead_of(config, base, quantized=quantized, place=place)
        raise MultituneError(error.what, error.where, mend) from error


def _place(base: Any, form: Form, config: AdaptationConfig, steps: int | None, seed: int) -> Any:
    """Return peft's model around a transformers model."""
    import torch
    from peft import get_peft_model

    from multitune.models.pretrained import peft_warnings_logged

    architecture = type(base).__name__
    try:
        peft_config = _peft_config(base, form, config, steps)
        counted_only = next(base.parameters()).is_meta
        with peft_warnings_logged(logging.DEBUG if counted_only else logging.INFO), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = get_peft_model(base, peft_config)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotPlaced(
            f"peft cannot place '{config.method}' on {architecture}: {reason}",
            f"adapt.method: {config.method}",
            "Change the option it speaks of, name target_modules that the model has, or choose lora.",
        ) from error
    for name, parameter in adapted.named_parameters():
        if ".ranknum." in name:  # AdaLoRA's own count, which peft would train on the meta device
            parameter.requires_grad_(False)
        if config.method == "lora_fa" and ".lora_A." in name:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise NotPlaced(
            f"The method '{config.method}' found nothing to train in {architecture}.",
            f"adapt.method: {config.method}",
            "Name target_modules that the model has, or choose lora.",
        )
    return adapted.train(base.training)  # peft's new modules would otherwise drop out in an evaluation


def _peft_config(base: Any, form: Form, config: AdaptationConfig, steps: int | None) -> Any:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from multitune.models.tuners import register_tuners

    register_tuners()
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(placed_as(config.method).upper())]
    options = _defaults_from_model(base, form, placed_as(config.method), steps) | config.resolved
    return config_class(task_type=TASK_TYPES[form], **_nested(config_class, options))


def _defaults_from_model(base: Any, form: Form, method: str, steps: int | None) -> dict[str, Any]:
    """Return defaults that depend on the model or the run; what the user gives overrides them."""
    text = base.config.get_text_config()
    if method == "adalora":
        # ranks are cut between a tenth and half of the run, and settle in the other half (paper, section 4.1)
        total = steps or 1000
        return {"total_step": total, "tinit": total // 10, "tfinal": total // 2}
    if method == "ln_tuning":
        norms = {name.split(".")[-1] for name, module in base.named_modules() if "Norm" in type(module).__name__}
        return {"target_modules": sorted(norms)}
    if method == "adaption_prompt":
        return {"adapter_layers": max(1, text.num_hidden_layers - 2)}  # 30 of 32 layers in the paper
    if form == "encoder" and "exclude_modules" in peft_fields()[method] and getattr(base, "pooler", None) is not None:
        return {"exclude_modules": r".*pooler.*"}  # it takes no part in the loss
    return {}


def _nested(config_class: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn mappings into the dataclasses that some fields expect (LoRA's ``eva_config``, for instance)."""
    hints = typing.get_type_hints(config_class)
    nested = {}
    for name, value in options.items():
        members = [hints[name], *typing.get_args(hints[name])]
        classes = [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]
        nested[name] = classes[0](**value) if classes and isinstance(value, Mapping) else value
    return nested
