"""Exact per-task sums over the steps between two log lines, kept on the device and read once per log line.

Shape legend: ``T`` tasks, ``N`` labelled tokens (encoders: examples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multitune.errors import MultituneError
from multitune.objectives.aggregation import Counts


@dataclass(frozen=True)
class TaskSums:
    """What one task did since the last log line, over all processes.

    Attributes:
        loss: sum of the losses divided by the number of labelled tokens; nan when the task did not occur.
        tokens: labelled tokens (encoders: examples).
        examples: examples with at least one labelled token.
        share: share of the total loss weight that the task received, in [0, 1].
    """

    loss: float
    tokens: int
    examples: int
    share: float


class TaskMonitor:
    """Adds up losses, weights and counts per task without a pass or a synchronisation of its own."""

    def __init__(self, names: Sequence[str], device: torch.device, reduce: Callable[[Tensor], Tensor] | None) -> None:
        self.names = tuple(names)
        self._reduce = reduce
        self._local_2T = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)  # loss, weight
        self._global_2T = torch.zeros(2, len(self.names), dtype=torch.int64, device=device)  # tokens, examples

    def count(self, counts: Counts) -> None:
        """Add the counts of one optimiser step, which are over all processes already."""
        self._global_2T += torch.stack((counts.tokens_T, counts.examples_T))

    def add(self, nll_N: Tensor, weight_N: Tensor, task_N: Tensor) -> None:
        """Add the losses of one micro-batch of this process."""
        self._local_2T.index_add_(1, task_N, torch.stack((nll_N.detach(), weight_N)).double())

    def refuse_nonfinite(self, step: int) -> None:
        """Raise when a task's loss is NaN or infinite: the weights of this step must not replace a good checkpoint.

        All processes ask together, and raise together.

        Raises:
            MultituneError: naming the tasks.
        """
        broken_T = (~torch.isfinite(self._local_2T[0])).long()
        finite_T = ((self._reduce(broken_T) if self._reduce is not None else broken_T) == 0).tolist()
        broken = [name for name, finite in zip(self.names, finite_T, strict=True) if not finite]
        if broken:
            raise MultituneError(
                f"The loss of {', '.join(broken)} is not a finite number.",
                f"training step {step}",
                "Look at the rows of that task, or lower training.learning_rate and run again; a changed setting "
                "trains this step from its start and removes the checkpoints that it has now.",
            )

    def read(self) -> dict[str, TaskSums]:
        """Return the sums since the last read, over all processes, and start anew."""
        local_2T = self._reduce(self._local_2T) if self._reduce is not None else self._local_2T
        (loss_T, weight_T), (tokens_T, examples_T) = local_2T.tolist(), self._global_2T.tolist()
        self._local_2T.zero_()
        self._global_2T.zero_()
        total = sum(weight_T)
        return {
            name: TaskSums(
                loss=loss_T[i] / tokens_T[i] if tokens_T[i] else math.nan,
                tokens=tokens_T[i],
                examples=examples_T[i],
                share=weight_T[i] / total if total else 0.0,
            )
            for i, name in enumerate(self.names)
        }
