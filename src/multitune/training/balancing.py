"""What stands between the trainer and a balancer: which validation rows it sees, and when.

Shape legend: ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multitune.mixing.batches import PlannedBatches, TrainingBatches
from multitune.mixing.tokens import TokenTable
from multitune.mixing.validation import single_pass, validation_batches
from multitune.objectives.balancing.balancer import Balancer
from multitune.objectives.balancing.balancers import make_balancer
from multitune.objectives.balancing.config import WatchesValidation
from multitune.training.config import TrainingConfig
from multitune.training.losses import LossModule
from multitune.training.task_gradients import TaskGradients

Batch = dict[str, Tensor]


class Balancing:
    """A balancer and the validation rows that it is fed with.

    Args:
        balancer: turns what it observes into task weights.
        first: every validation row once, for the losses before the first step; None where nothing is observed.
        later: micro-batch s holds the rows observed after optimiser step s + 1; None likewise.

    Attributes:
        observed_T: the last observed losses, [T]; None before the first observation.
    """

    def __init__(self, balancer: Balancer, first: PlannedBatches | None, later: PlannedBatches | None) -> None:
        self.balancer = balancer
        self._first, self._later = first, later
        self.observed_T: Tensor | None = None
        self._sums_2T = torch.zeros(2, balancer.tasks, dtype=torch.float64)  # weights since the last log line, steps

    def weigh(self, loss_T: Tensor | None, present_T: Tensor) -> Tensor:
        """Return the weights of the tasks in the coming step, float32 [T]."""
        weight_T = self.balancer.weights(loss_T, present_T)
        self._sums_2T += torch.stack((weight_T, present_T.cpu()))
        return weight_T.to(present_T.device).float()

    def coefficients(self, gram_TT: Tensor, loss_T: Tensor, present_T: Tensor) -> Tensor:
        """Return the coefficients with which the task gradients are added up, [T]."""
        weight_T = self.balancer.coefficients(gram_TT, loss_T, present_T)
        self._sums_2T += torch.stack((weight_T, present_T.cpu()))
        return weight_T

    def record(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return what the log says of the steps since its last line.

        ``weights``: every task's mean weight in the steps that held it, as shares of their sum; ``observed``: the last
        losses observed.
        """
        sum_T, steps_T = self._sums_2T
        mean_T = sum_T / steps_T  # nan for a task that did not occur
        told = {"weights": dict(zip(names, (mean_T / mean_T.nansum()).tolist(), strict=True))}
        self._sums_2T = torch.zeros_like(self._sums_2T)
        if self.observed_T is not None:
            told["observed"] = dict(zip(names, self.observed_T.tolist(), strict=True))
        return told

    def batches(self, step: int) -> list[Batch]:
        """Return the validation micro-batches observed after an optimiser step; all of them before the first."""
        planned = self._first if step == 0 else self._later
        assert planned is not None
        return [planned[index] for index in range(len(planned))] if step == 0 else [planned[step - 1]]

    def task_gradients(self, model: LossModule, reduce: Callable[[Tensor], Tensor] | None) -> TaskGradients | None:
        """Return where the tasks' gradients are kept apart, None for balancers that need none."""
        if not self.balancer.uses_gradients:
            return None
        heads = [p for p in model.head_parameters() if p.requires_grad]
        of_heads = {id(p) for p in heads}
        shared = [p for p in model.parameters() if p.requires_grad and id(p) not in of_heads]
        return TaskGradients(shared, heads, self.balancer.tasks, reduce)


def make_balancing(
    config: TrainingConfig, batches: TrainingBatches, validation: Sequence[TokenTable], steps: int, seed: int
) -> Balancing | None:
    """Return the balancer that the configuration asks for, with the validation rows it observes; None without one.

    Args:
        config: of the training.
        batches: the training's micro-batches, whose layout the validation rows share.
        validation: the tasks' validation rows, in the order of their task ids.
        steps: optimiser steps of the training.
        seed: of the draws of validation rows, and of the balancer.
    """
    if config.balancer is None:
        return None
    balancer = make_balancer(config.balancer, [table.task for table in batches.tables], seed)
    if balancer.observes != "validation" or not isinstance(config.balancer, WatchesValidation):
        return Balancing(balancer, None, None)
    layout: dict[str, Any] = {
        "form": batches.form,
        "row_length": batches.row_length,
        "pad_token_id": batches.pad_token_id,
        "seed": seed,
    }
    first = single_pass(validation, rows_per_task=None, rows_per_batch=config.rows_per_forward, **layout)
    rows = config.balancer.validation_rows
    return Balancing(
        balancer, first, validation_batches(validation, steps=steps, rows_per_task=rows, pack=batches.pack, **layout)
    )
