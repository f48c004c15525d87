"""Routing by task that ends at the average of all modules, for zero-shot transfer (arXiv:2211.03831, section 3)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multitune.errors import MultituneError
from multitune.models.tuners.mhr_tasks import anneal, end_annealing
from multitune.training.trainer import MultiTaskTrainer


class RoutingAnnealing(TrainerCallback):
    """Moves all tasks' mixtures towards the average in the last steps; at the very last one it is reached.

    Args:
        trainer: of a model with an MHR adapter; its `max_steps` is known.
        steps: K, the last optimiser steps of the training.

    Raises:
        MultituneError: the training is shorter, or its weights are dealt out, so that no process holds the mixtures.
    """

    def __init__(self, trainer: MultiTaskTrainer, steps: int) -> None:
        self.model, self.steps, self.training_steps = trainer.model.model, steps, trainer.args.max_steps
        if steps > self.training_steps:
            raise MultituneError(
                f"Mixtures cannot be annealed in the last {steps} steps of a training of {self.training_steps}.",
                "training.routing_annealing_steps",
                f"Give at most {self.training_steps}.",
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise MultituneError(
                "Mixtures cannot be annealed with FSDP or DeepSpeed, which deal the weights out.",
                "training.routing_annealing_steps",
                "Train with DDP or on one device, or take it out.",
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set how far the step that begins is annealed: k / K, a function of its number alone."""
        left = self.training_steps - (state.global_step + 1)
        anneal(self.model, max(0, self.steps - left) / self.steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After the last step keep the average in the weights, before they are saved."""
        if state.global_step == self.training_steps:
            end_annealing(self.model)
