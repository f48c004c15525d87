"""What one optimiser step minimises: the weight of every labelled token, from counts, task weights and balancers.

    loss = sum_i weight_i nll_i

The weights are known before the backward pass of the first micro-batch, so that neither accumulation nor the number of
processes changes the value. Focal losses add a term in p; see ``multitune.objectives.focal``.

Shape legend: ``T`` tasks, ``N`` labelled tokens (encoders: examples) of a micro-batch or of the step on this process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multitune.objectives.aggregation import Aggregation, Counts, count, task_units, token_weights
from multitune.objectives.focal import sample_coefficients, task_coefficients, task_means
from multitune.objectives.focal_config import FocalConfig
from multitune.training.balancing import Balancing

Batch = dict[str, Tensor]


class StepObjective:
    """The loss of one optimiser step after another.

    Args:
        names: the tasks, in the order of their ids.
        aggregation: how token losses become one number.
        task_weights_T: non-negative weights of the user, float32 [T].
        focal: scales what is easy down; None leaves it.
        balancing: changes the task weights as training goes; None leaves them as they are.
        forward: the token losses of a micro-batch as training computes them, [N].
        reduce: sums a tensor over processes; None on a single one.

    Attributes:
        counts: of the current step.
        present_T: which tasks the current step holds, bool [T]; one whose weight is 0 does not count.
    """

    counts: Counts
    present_T: Tensor

    def __init__(
        self,
        names: Sequence[str],
        aggregation: Aggregation,
        task_weights_T: Tensor,
        focal: FocalConfig | None,
        balancing: Balancing | None,
        forward: Callable[[Batch], Tensor],
        reduce: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.aggregation, self.task_weights_T = aggregation, task_weights_T
        self.focal, self.balancing = focal, balancing
        self._forward, self._reduce = forward, reduce
        alpha = focal.alpha if focal else {}
        self._alpha_T = torch.tensor([alpha.get(name, 1.0) for name in names], device=task_weights_T.device)
        self._batches: list[Batch] = []
        self._loss_T = torch.zeros(len(names), dtype=torch.float64, device=task_weights_T.device)

    def begin(self, batches: list[Batch]) -> None:
        """Give every labelled token of a step's micro-batches its weight.

        Adds to each micro-batch, which has ``task_N`` and ``example_N``, ``weight_N`` (share of the step's loss) and
        ``within_N`` (share of its task's loss).
        """
        task_N, example_N = (torch.cat([batch[ids] for batch in batches]) for ids in ("task_N", "example_N"))
        self.counts = count(task_N, example_N, len(self.task_weights_T), self._reduce)
        self.present_T = (self.counts.tokens_T > 0) & (self.task_weights_T > 0)
        unit_N, total_T = task_units(self.aggregation, self.counts)
        within_N = unit_N / total_T[task_N]
        sizes = [len(batch["task_N"]) for batch in batches]
        for batch, within_n in zip(batches, within_N.split(sizes), strict=True):
            batch["within_N"] = within_n
        self._batches = batches
        self._loss_T.zero_()
        weight_N = token_weights(self.aggregation, task_N, self.counts, self._task_weights())
        for batch, weight_n in zip(batches, weight_N.split(sizes), strict=True):
            batch["weight_N"] = weight_n
        if self.focal and self.focal.level == "task":
            nll_N = torch.cat(self._token_losses())
            self._focal_means = task_means(nll_N, task_N, self.counts, self._reduce)

    def loss(self, batch: Batch, nll_N: Tensor) -> Tensor:
        """Return this micro-batch's part of the step's loss; parts of all micro-batches and processes add up to it."""
        self._loss_T.index_add_(0, batch["task_N"], (batch["within_N"] * nll_N.detach()).double())
        if self.focal is None:
            return (batch["weight_N"] * nll_N).sum()
        a_N, b_N = self._focal_coefficients(batch, nll_N)
        linear = (a_N * nll_N + b_N * (-nll_N).exp()).sum()
        return linear + ((a_N * nll_N).sum() - linear).detach()  # the gradient of the one, the value of the other

    def task_losses(self, batch: Batch, nll_N: Tensor) -> Tensor:
        """Return this micro-batch's part of every task's loss, scaled so that their mean is ``loss``; [T]."""
        loss_T = torch.zeros(len(self.task_weights_T), device=nll_N.device)
        return loss_T.index_add(0, batch["task_N"], batch["weight_N"] * nll_N) * self.present_T.sum()

    def losses_of_step(self) -> Tensor:
        """Return the task losses that the step's own forward passes have had, NaN where absent; float64 [T]."""
        return self._over_processes(self._loss_T)

    def losses_now(self) -> Tensor:
        """Return the task losses on the step's micro-batches by a forward pass more, NaN where absent; float64 [T]."""
        loss_T = torch.zeros_like(self._loss_T)
        for batch, nll_n in zip(self._batches, self._token_losses(), strict=True):
            loss_T.index_add_(0, batch["task_N"], (batch["within_N"] * nll_n).double())
        return self._over_processes(loss_T)

    @torch.no_grad()
    def _token_losses(self) -> list[Tensor]:
        """Return the token losses of each micro-batch with the dropout that the coming backward passes will draw."""
        device = self.task_weights_T.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return [self._forward(batch) for batch in self._batches]

    def _task_weights(self) -> Tensor:
        """Return the weights of the tasks in this step, [T]; balancers of gradients come in after the backward pass."""
        if self.balancing is None or self.balancing.balancer.uses_gradients:
            return self.task_weights_T
        loss_T = self.losses_now() if self.balancing.balancer.uses_step_losses else None
        return self.task_weights_T * self.balancing.weigh(loss_T, self.present_T)

    def _focal_coefficients(self, batch: Batch, nll_N: Tensor) -> tuple[Tensor, Tensor]:
        assert self.focal is not None
        gamma, detached = self.focal.gamma, self.focal.detach_factor
        task_N, weight_N = batch["task_N"], batch["weight_N"]
        if self.focal.level == "sample":
            return sample_coefficients(nll_N, task_N, batch["example_N"], weight_N, self._alpha_T, gamma, detached)
        return task_coefficients(*self._focal_means, task_N, weight_N, self._alpha_T, gamma, detached)

    def _over_processes(self, loss_T: Tensor) -> Tensor:
        loss_T = self._reduce(loss_T) if self._reduce else loss_T.clone()
        return loss_T.masked_fill(~self.present_T, math.nan)


class ObserveTaskLosses(TrainerCallback):
    """Shows the balancer the task losses that it asks for, before the first optimiser step and after others."""

    def __init__(
        self, balancing: Balancing, objective: StepObjective, losses_on: Callable[[list[Batch]], Tensor]
    ) -> None:
        self.balancing, self.objective, self.losses_on = balancing, objective, losses_on

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Observe the losses at the start; a resumed run has seen them."""
        if state.global_step == 0 and self.balancing.balancer.observes == "validation":
            self._observe(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Observe the losses that the step has led to, before a checkpoint is written."""
        self._observe(state.global_step)

    def _observe(self, step: int) -> None:
        balancer = self.balancing.balancer
        if not balancer.due(step):
            return
        if balancer.observes == "validation":
            loss_T = self.losses_on(self.balancing.batches(step))
        elif balancer.observes == "training":
            loss_T = self.objective.losses_now()
        else:
            loss_T = self.objective.losses_of_step()
        balancer.observe(step, loss_T, loss_T.isfinite())
        self.balancing.observed_T = loss_T
