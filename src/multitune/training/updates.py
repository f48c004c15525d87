"""Steps of an optimiser that move only some entries of the weights, or more than those that have gradients.

A mask on the gradient would not do: weight decay moves what has none, and so do the moments of Adam from a step in
which an entry was free. Masked entries are therefore put back after every step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from multitune.adaptation.update_config import ChildTuningConfig, DeltaLoraConfig, LoraPlusConfig
from multitune.adaptation.updates import UpdateRule, kept_entries, largest_entries, moving_bases, own_weights
from multitune.errors import MultituneError
from multitune.mixing.batches import TrainingBatches
from multitune.mixing.shuffling import seed_of
from multitune.models.loading import Backbone
from multitune.training.losses import LossModule, labelled

logger = logging.getLogger("multitune.training")

MASKS_FILE = "masks.safetensors"
"""Which entries train: found once, and read when the run goes on."""


def refuse_rule(rule: UpdateRule, processes: int, optimizer: str) -> None:
    """Refuse what a rule cannot do.

    Raises:
        MultituneError: weights that are dealt out; a mask by Fisher information in several processes; another
            optimiser than AdamW under LoRA-FA.
    """
    if "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        raise MultituneError(
            f"The method {rule.method} acts on whole weights, which FSDP and DeepSpeed deal out.",
            f"adapt.method: {rule.method}",
            "Launch with DDP or one process, or choose lora or full.",
        )
    if rule.needs_fisher and processes > 1:
        raise MultituneError(
            f"The method {rule.method} finds its mask in one process, and there are {processes}.",
            f"adapt.method: {rule.method}",
            "Launch one process, or choose another method.",
        )
    if rule.method == "lora_fa" and not optimizer.startswith("adamw_torch"):
        raise MultituneError(
            f"LoRA-FA comes with an AdamW of its own, and cannot use {optimizer}.",
            "training.optimizer",
            "Leave the optimiser out.",
        )


def own_optimizer(
    rule: UpdateRule, model: LossModule, kind: type[Optimizer], options: Mapping[str, Any], weight_decay: float
) -> Optimizer | None:
    """Return peft's optimiser of a rule that has one; None for the others.

    Args:
        rule: what updates.
        model: the losses of an adapted backbone.
        kind, options: the recipe's optimiser and its arguments, the learning rate among them.
        weight_decay: of what is decayed.
    """
    if isinstance(rule.config, LoraPlusConfig):
        ratio = rule.config.rate_ratio
        module: Any = model  # an encoder's heads train too, at the rate of A
        return create_loraplus_optimizer(
            module, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=weight_decay, **options
        )
    if rule.method != "lora_fa":
        return None
    adapted = model.model.encoder if hasattr(model.model, "heads") else model.model
    config = adapted.active_peft_config
    optimizer = create_lorafa_optimizer(adapted, config.r, config.lora_alpha, options["lr"], weight_decay)
    group = optimizer.param_groups[0]
    group["betas"] = options["betas"]
    if hasattr(model.model, "heads"):
        heads = dict(model.model.heads.named_parameters())
        told = {"names": list(heads), "scaling_factors": [None] * len(heads)}
        kept = {name: group[name] for name in ("lr", "betas", "weight_decay", "scaling_factor")}
        optimizer.add_param_group({"params": list(heads.values()), **told, **kept})
    return optimizer


def fisher_information(backbone: Backbone, batches: TrainingBatches | Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return by name the mean squared gradient of log p(answer) over examples, one to a batch; float32.

    The diagonal of the empirical Fisher information (arXiv:2111.09839, equation 5), without dropout.
    """
    weights = own_weights(backbone.model)
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in weights.items()}
    losses = LossModule(backbone).eval()
    device = next(iter(weights.values())).device
    for place in range(len(batches)):
        batch = batches[place]
        batch = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in (batch | labelled(batch, backbone.form)._asdict()).items()
        }
        gradients = torch.autograd.grad(losses(batch).sum(), list(weights.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.float().square()
    return {name: total / len(batches) for name, total in sums.items()}


def fisher_masks(
    backbone: Backbone, make_batches: Callable[[], TrainingBatches], folder: Path, *, resumed: bool
) -> dict[str, Tensor]:
    """Return by name which entries train; they are kept in a file, as they cannot be found again from moved weights.

    Args:
        backbone: adapted by a rule that needs them.
        make_batches: returns the examples, one to a batch.
        folder: of the run.
        resumed: whether the run goes on.
    """
    file = folder / MASKS_FILE
    if resumed and file.is_file():
        return load_file(file)
    information = fisher_information(backbone, make_batches())
    entries = sum(score.numel() for score in information.values())
    masks = largest_entries(information, kept_entries(backbone.update.config, entries))
    logger.info("%s of %s entries train", f"{sum(int(m.sum()) for m in masks.values()):,}", f"{entries:,}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(masks, folder / f"{MASKS_FILE}.partial")
    os.replace(folder / f"{MASKS_FILE}.partial", file)
    return masks


def fixed_masks(weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> Callable[[str], Tensor]:
    """Return what tells the mask of a weight where it is the same at every step."""
    placed = {name: masks[name].to(p.device) for name, p in weights.items()}
    return placed.__getitem__


def drawn_masks(
    weights: Mapping[str, nn.Parameter], rule: UpdateRule, step: Callable[[], int]
) -> Callable[[str], Tensor]:
    """Return what tells the mask of a weight in Child-Tuning-F: Bernoulli(p), drawn anew at every step."""
    assert isinstance(rule.config, ChildTuningConfig)
    reserve = rule.config.reserve
    kept: dict[str, tuple[int, Tensor]] = {}

    def mask(name: str) -> Tensor:
        if name not in kept or kept[name][0] != step():
            generator = torch.Generator().manual_seed(seed_of(rule.seed, "child", step(), name) % 2**63)
            drawn = torch.rand(weights[name].shape, generator=generator) < reserve
            kept[name] = (step(), drawn.to(weights[name].device))
        return kept[name][1]

    return mask


def mask_updates(
    optimizer: Optimizer, weights: Mapping[str, nn.Parameter], mask: Callable[[str], Tensor], scale: float = 1.0
) -> None:
    """Let an optimiser change only the masked entries of weights, whatever it does.

    Gradients of the others are zero from the backward pass on, so that the clipping of their norm does not see them
    either.

    Args:
        optimizer: of the weights, among others.
        weights: by name.
        mask: tells which entries of a weight change in the current step, bool.
        scale: of the gradients (Child-Tuning-F divides by p).
    """

    def masked(gradient: Tensor, name: str) -> Tensor:
        kept = gradient * mask(name)
        return kept if scale == 1 else kept * scale

    for name, weight in weights.items():
        weight.register_hook(partial(masked, name=name))
    before: dict[str, Tensor] = {}

    def remember(*_: Any) -> None:
        before.update({name: weight.detach().clone() for name, weight in weights.items()})

    @torch.no_grad()
    def put_back(*_: Any) -> None:
        for name, weight in weights.items():
            weight.copy_(torch.where(mask(name), weight, before.pop(name)))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(put_back)


def move_bases_along(optimizer: Optimizer, model: nn.Module, rule: UpdateRule, step: Callable[[], int]) -> None:
    """Add lambda times what (alpha / r) B A has moved in a step to the weight below it (arXiv:2309.02411, equation 4).

    Args:
        optimizer: of A and B.
        model: adapted by LoRA.
        rule: of Delta-LoRA.
        step: tells how many optimiser steps are done.
    """
    assert isinstance(rule.config, DeltaLoraConfig)
    ratio, start = rule.config.delta_ratio, rule.config.delta_start
    layers = dict(moving_bases(model, rule))
    before: dict[str, Tensor] = {}

    def changes() -> dict[str, Tensor]:
        return {path: layer.get_delta_weight(layer.active_adapters[0]) for path, layer in layers.items()}

    @torch.no_grad()
    def remember(*_: Any) -> None:
        if step() >= start:
            before.update(changes())

    @torch.no_grad()
    def move(*_: Any) -> None:
        if before:
            for path, change in changes().items():
                weight = layers[path].get_base_layer().weight
                weight += ratio * (change - before.pop(path)).to(weight.dtype)

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(move)


def follow_rule(
    optimizer: Optimizer, model: nn.Module, rule: UpdateRule, masks: Mapping[str, Tensor], step: Callable[[], int]
) -> None:
    """Make an optimiser's steps what a rule says.

    Args:
        optimizer: as made, before its first step.
        model: of the backbone.
        rule: of the backbone.
        masks: of a rule that needs Fisher information; else empty.
        step: tells how many optimiser steps are done.
    """
    weights = own_weights(model)
    if rule.needs_fisher:
        mask_updates(optimizer, weights, fixed_masks(weights, masks))
    elif isinstance(rule.config, ChildTuningConfig):
        mask_updates(optimizer, weights, drawn_masks(weights, rule, step), 1 / rule.config.reserve)
    elif isinstance(rule.config, DeltaLoraConfig):
        move_bases_along(optimizer, model, rule, step)
