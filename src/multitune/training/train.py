"""One train step: token tables in, an adapted backbone out."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multitune.adaptation.adapting import allocate_ranks, schedule_ranks
from multitune.adaptation.updates import trained_numbers
from multitune.errors import MultituneError, nearest
from multitune.mixing.batches import TrainingBatches
from multitune.mixing.mixture import Mixture
from multitune.mixing.policies import MixtureConfig, shares
from multitune.mixing.tokens import TokenTable
from multitune.models.heads import fit_scales
from multitune.models.loading import Backbone
from multitune.models.packed import check_packing, packing_route, packs, without_adapters
from multitune.training.arguments import steps_in, training_arguments
from multitune.training.balancing import make_balancing
from multitune.training.checkpoints import find_checkpoint, load_weights, trainable_state
from multitune.training.config import TrainingConfig
from multitune.training.cost import StepTimes, peak_memory, reset_peak_memory
from multitune.training.evaluation import make_evaluation
from multitune.training.half_resampling import HalfResampling
from multitune.training.interrupts import Interrupted, StopRequest, stop_on_signals
from multitune.training.logs import JsonLinesLog, LiveView
from multitune.training.losses import LossModule
from multitune.training.processes import any_of, broadcast, is_main, world_size
from multitune.training.recomputing import recompute_activations
from multitune.training.router_loss import RouterLoss, make_router_loss
from multitune.training.routing_annealing import RoutingAnnealing
from multitune.training.sharding import gathered, is_sharded
from multitune.training.trainer import MultiTaskTrainer, refuse_nonfinite_weights
from multitune.training.updates import fisher_masks, refuse_rule
from multitune.training.zero import master_weights, zero_optimizer

logger = logging.getLogger("multitune.training")

RESULTS_VERSION = 2
"""Raised when the same settings would train other weights, so that old checkpoints are not resumed."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training says of itself.

    Attributes:
        steps: optimiser steps.
        seconds: wall time of this process, without what ran before a resume.
        trainable_parameters: parameters that trained.
        fill: share of the positions that held tokens.
        step_seconds: median time of an optimiser step; None where a run had none left to do.
        peak_bytes: of memory while training, see `peak_memory`.
        weights: what has trained, whole, where FSDP or DeepSpeed holds it (``with_weights`` puts it into a model);
            None where the backbone itself holds it.
    """

    steps: int
    seconds: float
    trainable_parameters: int
    fill: float
    step_seconds: float | None = None
    peak_bytes: int | None = None
    weights: dict[str, torch.Tensor] | None = None


def train(
    backbone: Backbone,
    tables: Sequence[TokenTable],
    mixture: MixtureConfig,
    config: TrainingConfig,
    folder: Path,
    *,
    seed: int,
    validation: Sequence[TokenTable] = (),
    title: str = "train",
) -> TrainingResult:
    """Train what of the backbone requires gradients, on a mixture of tasks; resume by itself.

    Args:
        backbone: model (adapted already) and tokenizer; its weights are changed in place.
        tables: the tasks' tokens, in the order of their task ids.
        mixture: in what proportion the tasks are drawn.
        config: length, batches, optimiser, loss.
        folder: receives ``log.jsonl``, ``tracking/`` (of trackers) and ``checkpoints/``; a whole checkpoint of this
            very run found there is resumed, and ends with the weights of an undisturbed run.
        seed: of the mixture, of dropout and of everything else that is random.
        validation: the tasks' validation rows, in the same order; needed where ``config.uses_validation``.
        title: name shown in the live view.

    Raises:
        MultituneError: nothing trains, a loss that is not finite, packing that leaks, a folder that cannot be written.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint is whole.
    """
    names = [table.task for table in tables]
    trainable = trained_numbers(backbone.model, backbone.update)
    if trainable == 0:
        raise MultituneError("Nothing of the model trains.", title, "Choose an adaptation that has parameters.")
    if backbone.update is not None:
        refuse_rule(backbone.update, world_size(), config.optimizer)
    if backbone.form == "encoder":
        fit_scales(backbone.model, {table.task: table.values for table in tables})
    fingerprint = _fingerprint(backbone, [*tables, *validation], mixture, config, seed)
    config = config.shared_by(world_size())
    batches = make_batches(backbone, tables, mixture, config, seed)
    # the main process looks: others may stand before files that it is still tidying up
    resume = broadcast(find_checkpoint(folder / "checkpoints", fingerprint) if is_main() else None)
    resumed_step = int(resume.name.removeprefix("checkpoint-")) if resume else 0
    if resume:
        logger.info("%s goes on from step %d", title, resumed_step)
    show, views = _shown(folder, resumed_step, title) if is_main() else (_unheard, [])
    _prepare(backbone, config)
    router_loss = _router_loss(backbone, config)
    started, step_times = time.monotonic(), StepTimes()
    reset_peak_memory()
    if "wandb" in config.report_to:
        (folder / "tracking").mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DIR", str(folder / "tracking"))
    arguments = training_arguments(backbone, batches, config, folder, seed)
    losses = LossModule(backbone, names)
    stored_dtypes = _train_in_float32(
        losses, with_frozen=backbone.half is not None and not (arguments.bf16 or arguments.fp16)
    )
    masks = {}
    if backbone.update is not None and backbone.update.needs_fisher:
        single = _one_by_one(config, backbone.update.samples)
        draw = partial(make_batches, backbone, tables, mixture, single, seed)
        masks = fisher_masks(backbone, draw, folder, resumed=resume is not None)
    with stop_on_signals() as request:
        stopper = StopAtStepEnd(request)
        trainer = MultiTaskTrainer(
            losses,
            arguments,
            batches=batches,
            names=names,
            aggregation=config.aggregation,
            task_weights_T=_task_weights(config, names),
            focal=config.focal,
            balancing=make_balancing(config, batches, validation, arguments.max_steps, seed),
            router_loss=router_loss,
            log=show,
            fingerprint=fingerprint,
            callbacks=[step_times, stopper, RankAllocation(backbone.model), *views],
            routing_learning_rate=config.routing_learning_rate,
            prompt_learning_rate=config.prompt_learning_rate,
            update=backbone.update,
            masks=masks,
        )
        _remove_default_printers(trainer)
        if backbone.half is not None and backbone.half.config.resample == "epoch":
            filled = steps_in(batches, config)
            per_epoch = filled * sum(len(table) for table in tables) / batches.mixture.total
            trainer.add_callback(HalfResampling(trainer, backbone.half, per_epoch, resumed_step))
        if config.routing_annealing_steps:
            trainer.add_callback(RoutingAnnealing(trainer, config.routing_annealing_steps))
        keep_tracker_files(trainer, folder / "tracking")
        evaluation = make_evaluation(trainer, validation, config, folder, resumed_step, seed)
        try:
            if resume and (resumed_step >= trainer.args.max_steps or (evaluation and evaluation.exhausted)):
                load_weights(resume, trainer.model)  # killed after the last checkpoint: another step would be too many
            else:
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        finally:
            for view in views:
                view.close()
            if router_loss:
                router_loss.close()
    steps = max(resumed_step, trainer.state.global_step)
    if stopper.stopped:
        raise Interrupted(steps, folder / "checkpoints" / f"checkpoint-{steps}")
    if evaluation and config.load_best_model_at_end:
        evaluation.load_best(trainer.model)
    refuse_nonfinite_weights(trainer.model, steps, folder / "checkpoints")
    result = TrainingResult(
        steps, time.monotonic() - started, trainable, batches.fill, step_times.median, peak_memory(arguments.device)
    )
    if is_sharded(trainer.model):
        weights = {name: gathered(tensor).cpu() for name, tensor in trainable_state(trainer.model).items()}
        return replace(result, weights=weights)
    if zero_optimizer(trainer.optimizer):
        return replace(result, weights=trainable_state(trainer.model) | master_weights(trainer.model))
    for parameter, dtype in stored_dtypes:
        parameter.data = parameter.data.to(dtype)
    backbone.model.eval()
    return result


def with_weights(backbone: Backbone, weights: dict[str, torch.Tensor]) -> Backbone:
    """Put the weights of a training's result into a backbone that was loaded and adapted alike; it is changed."""
    for name, tensor in trainable_state(LossModule(backbone)).items():
        tensor.copy_(weights[name])
    backbone.model.eval()
    return backbone


def _shown(folder: Path, resumed_step: int, title: str) -> tuple[Callable[[dict[str, Any]], None], list[LiveView]]:
    """Return what every log record is given to, and the view to be closed at the end."""
    log, view = JsonLinesLog(folder / "log.jsonl", resumed_step), LiveView(title)

    def show(record: dict[str, Any]) -> None:
        log.write(record)
        view.show(record)

    return show, [view]


def _unheard(record: dict[str, Any]) -> None:
    """What other processes than the main one do with a log record."""


class StopAtStepEnd(TrainerCallback):
    """Turns a request to stop into a checkpoint and the end of training after the current step."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the Trainer to save and stop; and to log the last step, whatever logging_steps says."""
        # a signal reaches the processes at different times, and the checkpoint takes them all
        self.stopped = any_of(self.request.requested)
        if self.stopped or state.global_step >= state.max_steps:
            control.should_log = True
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True


class RankAllocation(TrainerCallback):
    """Lets AdaLoRA move its ranks between layers after every optimiser step; does nothing to other models."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fit the schedule to the run."""
        schedule_ranks(self.model, state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run while the step's gradients are still there, which the allocation needs."""
        allocate_ranks(self.model, state.global_step)


def make_batches(
    backbone: Backbone, tables: Sequence[TokenTable], mixture: MixtureConfig, config: TrainingConfig, seed: int
) -> TrainingBatches:
    """Draw the mixture and lay it out in micro-batches, packed where the architecture allows it."""
    causal = backbone.form == "causal"
    route = packing_route(backbone.model) if causal and config.pack != "never" else None
    pack = packs(backbone.form, config.pack, route, type(without_adapters(backbone.model)).__name__)
    if pack:
        check_packing(backbone)
    rows = {table.task: len(table) for table in tables}
    total = _draws(tables, mixture, config, pack)
    while True:
        batches = TrainingBatches(
            tables,
            Mixture(rows, mixture, seed, total=total),
            form=backbone.form,
            pack=pack,
            row_length=config.max_length,
            micro_batch_size=config.rows_per_forward,
            rows_per_step=config.batch_size,
            pad_token_id=backbone.tokenizer.pad_token_id,
            seed=seed,
        )
        filled = steps_in(batches, config)
        if config.steps is None or filled >= config.steps:
            return batches
        # the rows that were drawn are shorter than their task's mean: draw as many more as are still wanted, and some
        total += math.ceil(1.1 * total * (config.steps - filled) / (filled + 1)) + 64


def _draws(tables: Sequence[TokenTable], mixture: MixtureConfig, config: TrainingConfig, pack: bool) -> int:
    """Return how many examples to draw: exact for epochs and examples, an estimate for steps of packed rows."""
    if config.examples:
        return config.examples
    if not config.steps:
        return math.ceil((config.epochs or 1.0) * sum(len(table) for table in tables))
    rows = config.steps * config.batch_size
    if not pack:
        return rows
    progress_P = np.linspace(0, 1, 32)
    share_PT = shares(mixture, np.array([len(t) for t in tables]), [t.task for t in tables], progress_P)
    # examples per row under the share that favours short tasks most, and a margin for rows that are fuller than usual
    mean_length = (share_PT @ np.array([t.lengths.mean() for t in tables])).min()
    return math.ceil(1.1 * rows * config.max_length / mean_length) + 64


def _prepare(backbone: Backbone, config: TrainingConfig) -> None:
    """Switch on what belongs to the backbone itself: gradient checkpointing and Liger kernels."""
    if config.gradient_checkpointing:
        recompute_activations(backbone.model.encoder if backbone.form == "encoder" else backbone.model)
    if config.liger == "auto" and torch.cuda.is_available():
        from transformers.utils import is_liger_kernel_available

        if is_liger_kernel_available():
            from transformers.integrations.liger import apply_liger_kernel

            # the losses are ours: only the layers' kernels are wanted
            apply_liger_kernel(backbone.model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
            logger.info("Liger kernels are on")


def _router_loss(backbone: Backbone, config: TrainingConfig) -> RouterLoss | None:
    if backbone.form != "causal":
        return None
    loss = make_router_loss(backbone.model, config.router_loss)
    if loss and config.balancer and config.balancer.needs_gradients:
        loss.close()
        raise MultituneError(
            f"{config.balancer.method} combines the gradients of tasks, and the router loss belongs to none.",
            "training.balancer",
            "Choose a balancer of losses, or set training.router_loss to 0.",
        )
    return loss


def _one_by_one(config: TrainingConfig, examples: int) -> TrainingConfig:
    """Return the configuration under which so many examples are drawn, each a batch of its own."""
    length = {"epochs": None, "steps": None, "examples": examples}
    return config.model_copy(update={**length, "batch_size": 1, "micro_batch_size": 1, "pack": "never"})


def _train_in_float32(model: LossModule, *, with_frozen: bool) -> list[tuple[torch.nn.Parameter, torch.dtype]]:
    """Hold what trains in float32 and return the dtypes to give back; autocast computes in 16 bits all the same.

    A step of 2e-5 on a weight of 0.02 is below the resolution of bfloat16: most updates would round to nothing.

    Args:
        model: what trains.
        with_frozen: whether what is frozen goes along: without autocast a matrix in 16 bits cannot take what one in
            float32 puts out. Adapters see to that themselves.
    """
    held = list(model.parameters()) if with_frozen else [parameter for _, parameter in model.changing_parameters()]
    stored = [(p, p.dtype) for p in held if p.dtype in (torch.bfloat16, torch.float16)]
    for parameter, _ in stored:
        parameter.data = parameter.data.float()
    return stored


def _task_weights(config: TrainingConfig, names: Sequence[str]) -> torch.Tensor:
    for name in config.task_weights:
        if name not in names:
            raise MultituneError(
                f"There is no task '{name}' in this step.{nearest(name, names)}",
                f"training.task_weights.{name}",
                f"Name one of: {', '.join(names)}.",
            )
    weights = torch.tensor([config.task_weights.get(name, 1.0) for name in names])
    if weights.sum() == 0:
        raise MultituneError("All task weights are 0.", "training.task_weights", "Give one task a positive weight.")
    return weights


def _fingerprint(
    backbone: Backbone, tables: Sequence[TokenTable], mixture: MixtureConfig, config: TrainingConfig, seed: int
) -> str:
    """Digest what determines the weights; how often is logged and saved does not."""
    settings = config.model_dump(exclude={"logging_steps", "save_steps", "save_total_limit", "report_to"})
    parameters = [(name, tuple(p.shape), p.requires_grad) for name, p in backbone.model.named_parameters()]
    parts = {
        "version": RESULTS_VERSION,
        "model": backbone.config.model_dump(mode="json"),
        "parameters": parameters,
        "tables": [(table.task, table.fingerprint) for table in tables],
        "mixture": mixture.model_dump(mode="json"),
        "training": settings,
        "seed": seed,
    }
    if backbone.update is not None:
        parts["update"] = [backbone.update.method, backbone.update.config.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def keep_tracker_files(trainer: MultiTaskTrainer, folder: Path) -> None:
    """Let TensorBoard write beside the step's log; by default its files lie with the checkpoints and go with them."""
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)


def _remove_default_printers(trainer: MultiTaskTrainer) -> None:
    """The Trainer adds a printer of raw dictionaries; the live view takes its place."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
