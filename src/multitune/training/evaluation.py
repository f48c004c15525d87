"""Every task's validation loss during training, and what follows from it: when to stop, and which weights to keep.

Shape legend: ``T`` tasks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multitune.mixing.tokens import TokenTable
from multitune.mixing.validation import single_pass
from multitune.training.checkpoints import trainable_state
from multitune.training.config import TrainingConfig
from multitune.training.logs import JsonLinesLog
from multitune.training.processes import broadcast, is_main
from multitune.training.sharding import dealt_like, gathered
from multitune.training.trainer import MultiTaskTrainer, diverged

logger = logging.getLogger("multitune.training")


class Evaluation(TrainerCallback):
    """Evaluates every task's validation loss before the first step, every so many steps and after the last.

    What it decides follows from ``validation.jsonl`` alone, so that a resumed run stops where an undisturbed one does.

    Args:
        folder: receives ``validation.jsonl`` and ``best/``, the weights with the lowest mean loss over tasks.
        names: the tasks.
        losses: evaluates them, [T].
        every: optimiser steps between evaluations.
        patience: evaluations without a lower mean loss after which training stops; None never stops.
        keep_best: whether the best weights are kept.
        resumed_step: lines after it are forgotten.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        losses: Callable[[], Tensor],
        *,
        every: int,
        patience: int | None,
        keep_best: bool,
        resumed_step: int,
    ) -> None:
        self.names, self.losses, self.every, self.patience = tuple(names), losses, every, patience
        self.folder, self.keep_best = folder / "best", keep_best
        self.means: dict[int, float] = {}
        if is_main():
            self.log = JsonLinesLog(folder / "validation.jsonl", resumed_step)
            self.means = {int(record["step"]): float(record["loss"]) for record in self.log.records()}
        self.means = broadcast(self.means)

    @property
    def best_step(self) -> int:
        """The step with the lowest mean loss; the first of equal ones."""
        return min(self.means, key=lambda step: self.means[step])

    @property
    def exhausted(self) -> bool:
        """Whether the last ``patience`` evaluations were no better than the best before them."""
        later = sum(step > self.best_step for step in self.means) if self.means else 0
        return self.patience is not None and later >= self.patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate what training starts from; a resumed run has done so."""
        if state.global_step == 0:
            self._evaluate(0, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate when it is time, and ask for a checkpoint and the end when patience is exhausted."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._evaluate(state.global_step, kwargs["model"])
            if self.exhausted:
                logger.info("the validation loss was lowest at step %d: training stops", self.best_step)
                control.should_log = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop weights that are the best no more; a run resumed from an older checkpoint may still need them."""
        if is_main() and self.means:
            for path in self.folder.glob("weights-*.safetensors"):
                if path != self._weights(self.best_step):
                    path.unlink()

    def load_best(self, model: torch.nn.Module) -> None:
        """Copy the weights of the best evaluation into the model."""
        saved = load_file(self._weights(self.best_step))
        for name, tensor in trainable_state(model).items():
            tensor.copy_(dealt_like(saved[name], tensor))
        logger.info("the weights are those of step %d, with the lowest validation loss", self.best_step)

    def _weights(self, step: int) -> Path:
        return self.folder / f"weights-{step}.safetensors"

    def _evaluate(self, step: int, model: torch.nn.Module) -> None:
        loss_T = self.losses()
        if broken := [name for name, loss in zip(self.names, loss_T.tolist(), strict=True) if not math.isfinite(loss)]:
            raise diverged(f"The validation loss of {', '.join(broken)}", step, self.folder.parent / "checkpoints")
        self.means[step] = float(loss_T.mean())
        best = self.keep_best and self.best_step == step
        kept = trainable_state(model) if best else {}
        weights = {name: gathered(tensor).contiguous() for name, tensor in kept.items()}
        if is_main():
            tasks = dict(zip(self.names, loss_T.tolist(), strict=True))
            self.log.write({"step": step, "loss": self.means[step], "tasks": tasks})
            if best:
                self.folder.mkdir(exist_ok=True)
                partial = self.folder / "partial.safetensors"
                save_file(weights, partial)
                partial.replace(self._weights(step))
        told = "  ".join(f"{name} {loss:.3f}" for name, loss in zip(self.names, loss_T.tolist(), strict=True))
        logger.info("step %d  validation loss %.4f  %s", step, self.means[step], told)


def make_evaluation(
    trainer: MultiTaskTrainer,
    validation: Sequence[TokenTable],
    config: TrainingConfig,
    folder: Path,
    resumed_step: int,
    seed: int,
) -> Evaluation | None:
    """Add an ``Evaluation`` to a trainer where the configuration asks for one, and return it."""
    if config.eval_steps is None:
        return None
    batches = single_pass(
        validation,
        rows_per_task=config.eval_rows,
        rows_per_batch=config.rows_per_forward,
        form=trainer.batches.form,
        row_length=trainer.batches.row_length,
        pad_token_id=trainer.batches.pad_token_id,
        seed=seed,
    )
    evaluation = Evaluation(
        folder,
        trainer.monitor.names,
        lambda: trainer.losses_on(batches[index] for index in range(len(batches))),
        every=config.eval_steps,
        patience=config.early_stopping_patience,
        keep_best=config.load_best_model_at_end,
        resumed_step=resumed_step,
    )
    trainer.add_callback(evaluation)
    return evaluation
