"""Translates what a recipe says of training into the Trainer's arguments, for the machine and launcher at hand."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from multitune.errors import MultituneError
from multitune.mixing.batches import TrainingBatches
from multitune.models.loading import Backbone
from multitune.training.config import TrainingConfig
from multitune.training.processes import world_size

logger = logging.getLogger("multitune.training")


def training_arguments(
    backbone: Backbone, batches: TrainingBatches, config: TrainingConfig, folder: Path, seed: int
) -> TrainingArguments:
    """Translate a TrainingConfig into the Trainer's arguments; what was resolved is logged."""
    device = backbone.model.device if hasattr(backbone.model, "device") else torch.device("cpu")
    on_gpu = torch.cuda.is_available() and device.type == "cuda"
    processes = world_size()
    _refuse_launcher(config)
    accumulation, remainder = divmod(config.batch_size, config.rows_per_forward * processes)
    if remainder or accumulation == 0:
        raise MultituneError(
            f"batch_size {config.batch_size} cannot be shared by {processes} processes "
            f"with {config.rows_per_forward} rows per forward pass.",
            "training.batch_size",
            f"Use a multiple of {config.rows_per_forward * processes}, or a smaller micro_batch_size.",
        )
    steps = config.steps or steps_in(batches, config)
    precision = _precision(config, on_gpu)
    learning_rate = config.learning_rate or (2e-5 if _trains_own_weights(backbone) else 2e-4)
    logger.info(
        "%d steps of %d rows, learning rate %g, %s, aggregation %s",
        steps,
        config.batch_size,
        learning_rate,
        precision,
        config.aggregation,
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=int(config.warmup * steps),
        optim=config.optimizer,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        torch_compile=config.compile,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        report_to=list(config.report_to) or "none",
        seed=seed,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=not on_gpu,
        log_level="error",
        dataloader_pin_memory=on_gpu,
        # heads of tasks that a micro-batch lacks, experts that no token of it reaches, and what another epoch of half
        # fine-tuning trains have no gradient
        ddp_find_unused_parameters=backbone.form == "encoder" or _has_experts(backbone) or _redraws(backbone),
    )
    if arguments.n_gpu > 1:
        logger.warning("one of %d GPUs is used; `accelerate launch` uses them all", arguments.n_gpu)
        arguments._n_gpu = 1  # more would mean DataParallel, whose replicas the losses module does not know
    return arguments


def _redraws(backbone: Backbone) -> bool:
    return backbone.half is not None and backbone.half.config.resample == "epoch"


def _refuse_launcher(config: TrainingConfig) -> None:
    """Refuse what a launcher asks for and this version has not.

    Raises:
        MultituneError: balancers of gradients with FSDP or DeepSpeed; a stage of DeepSpeed that is not read here.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        _refuse_of_deepspeed(config)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and config.balancer and config.balancer.needs_gradients:
        raise MultituneError(
            f"The balancer {config.balancer.method} needs every task's whole gradient, which FSDP deals out.",
            "training.balancer",
            "Launch without FSDP, or choose a balancer of losses such as coba.",
        )


def _refuse_of_deepspeed(config: TrainingConfig) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise MultituneError("DeepSpeed is not installed.", "accelerate launch", "pip install deepspeed, or use fsdp2.")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2"):
        raise MultituneError(
            f"ZeRO stage {stage} of DeepSpeed is not offered.",
            "accelerate launch",
            "Use zero_stage 1 or 2, or FSDP2, which deals out the parameters too.",
        )
    if config.precision == "float16":
        raise MultituneError(
            "DeepSpeed scales float16 in a way of its own.", "training.precision", "Use bfloat16 or float32."
        )
    if config.balancer and config.balancer.needs_gradients:
        raise MultituneError(
            f"The balancer {config.balancer.method} needs every task's whole gradient, which DeepSpeed deals out.",
            "training.balancer",
            "Launch with DDP, or choose a balancer of losses such as coba.",
        )


def _precision(config: TrainingConfig, on_gpu: bool) -> str:
    """Return the type in which products are computed; a CPU uses bfloat16 only where it was asked for and is fast."""
    if on_gpu:
        bfloat16 = config.precision == "auto" and torch.cuda.is_bf16_supported()
        return "bfloat16" if bfloat16 else config.precision.replace("auto", "float32")
    if config.precision == "bfloat16" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bfloat16"
    if config.precision in ("bfloat16", "float16"):
        logger.warning("this CPU has no fast %s: float32 is used instead", config.precision)
    return "float32"


def _trains_own_weights(backbone: Backbone) -> bool:
    """Tell full and half fine-tuning, which take small steps, from adapters, which begin at nothing."""
    return backbone.half is not None or all(p.requires_grad for p in backbone.model.parameters())


def _has_experts(backbone: Backbone) -> bool:
    return any(".experts." in name for name, _ in backbone.model.named_parameters())


def steps_in(batches: TrainingBatches, config: TrainingConfig) -> int:
    """Return how many optimiser steps the micro-batches fill."""
    return math.ceil(len(batches) * config.rows_per_forward / config.batch_size)
