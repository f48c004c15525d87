"""Half fine-tuning that draws its half again at every epoch: an option beside the paper's one draw per training."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multitune.adaptation.half import HalfRound, at_epoch, freeze
from multitune.errors import MultituneError
from multitune.training.trainer import MultiTaskTrainer

logger = logging.getLogger("multitune.training")


class HalfResampling(TrainerCallback):
    """Freezes another half at the beginning of every epoch, with an optimiser that knows nothing of the one before.

    Args:
        trainer: the run's; its optimiser does not exist yet.
        half: the round, as it stands at its first epoch.
        steps_per_epoch: optimiser steps in which as many rows are drawn as the tasks have; need not be whole.
        resumed_step: last step of the checkpoint that the run goes on from, whose half is frozen right away.

    Several processes (DDP) look at the parameters once, when they wrap the model: until then all that any epoch may
    train asks for gradients, and from then on each step finds out what its half leaves unused.

    Raises:
        MultituneError: balancing of gradients, or weights that are dealt out, which fix what trains before the first
            step.
    """

    def __init__(self, trainer: MultiTaskTrainer, half: HalfRound, steps_per_epoch: float, resumed_step: int) -> None:
        dealt_out = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        if dealt_out or trainer.task_gradients is not None:
            what = "FSDP or DeepSpeed" if dealt_out else "a balancer of gradients"
            raise MultituneError(
                f"Another half at every epoch cannot train with {what}, which fix what trains at the start.",
                "adapt.resample: epoch",
                "Take it out: every training of a chain of steps draws anew anyway.",
            )
        self.trainer, self.half, self.steps_per_epoch = trainer, half, steps_per_epoch
        self._freeze(max(resumed_step - 1, 0))
        trainer.when_optimizer_is_made = self._show_all

    def _show_all(self) -> None:
        parameters = dict(self.trainer.model.model.named_parameters())
        for name in self.half.sizes:
            parameters[name].requires_grad_(True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze the half again, now that the model is wrapped and the optimiser's state is loaded."""
        freeze(self.trainer.model.model, self.half)

    def _freeze(self, step: int) -> bool:
        """Freeze the half of the epoch in which a step lies; whether it is another than before."""
        half = at_epoch(self.half, int(step / self.steps_per_epoch))
        changed = half.epoch != self.half.epoch
        if changed:
            freeze(self.trainer.model.model, half)
            self.half = half
        return changed

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw anew at the first step of an epoch."""
        if not self._freeze(state.global_step):
            return
        logger.info("epoch %d: another half trains, %s parameters", self.half.epoch + 1, f"{self.half.trainable:,}")
        model = self.trainer.model
        decayed = self.trainer.get_decay_parameter_names(model)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = kwargs["optimizer"]
        optimizer.state.clear()
        # the Trainer's own two groups, in its order: a checkpoint names the state by place
        with_decay, without = optimizer.param_groups
        with_decay["params"] = [p for name, p in trainable.items() if name in decayed]
        without["params"] = [p for name, p in trainable.items() if name not in decayed]
