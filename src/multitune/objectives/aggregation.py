"""How token losses become one number: the data-balance losses of MFTCoder (arXiv 2311.02303, equations 1-2).

Shape legend: ``N`` labelled tokens, ``T`` tasks, ``E`` examples.

Every aggregation here is a weighted sum of token losses whose weights follow from counts alone. The counts of a whole
optimiser step are known before its first forward pass, so a step split over micro-batches or processes minimises the
very same value as one big batch: ``loss = sum_i weight_i * nll_i`` with the same ``weight_i`` either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "sample_mean", "task_token_mean", "task_sample_mean"]


@dataclass(frozen=True)
class Counts:
    """Counts of one optimiser step.

    Attributes:
        tokens_N: labelled tokens of the example that token i belongs to (``n_e``), shape [N], local to this process.
        tokens_T: labelled tokens of every task (``n_t``), shape [T], over all processes.
        examples_T: examples of every task with at least one labelled token (``k_t``), shape [T], over all processes.
    """

    tokens_N: Tensor
    tokens_T: Tensor
    examples_T: Tensor


def count(task_N: Tensor, example_N: Tensor, tasks: int, reduce: Callable[[Tensor], Tensor] | None = None) -> Counts:
    """Count labelled tokens per example and task, and examples per task.

    Args:
        task_N: task index of every labelled token, shape [N], int64 in [0, tasks).
        example_N: example id of every labelled token, shape [N], int64; unique over the optimiser step.
        tasks: number of tasks T.
        reduce: sums a [2, T] tensor over processes; None on a single process. An example lives on one process.
    """
    examples_E, index_N = torch.unique(example_N, return_inverse=True)
    tokens_E = torch.bincount(index_N, minlength=len(examples_E))
    task_E = torch.empty_like(examples_E).scatter_(0, index_N, task_N)
    sums_2T = torch.stack((torch.bincount(task_N, minlength=tasks), torch.bincount(task_E, minlength=tasks)))
    if reduce is not None:
        sums_2T = reduce(sums_2T)
    return Counts(tokens_E[index_N], sums_2T[0], sums_2T[1])


def token_mean(task_N: Tensor, counts: Counts, weight_T: Tensor) -> Tensor:
    """Case 1, plain fine-tuning: sum_e S_e / sum_e n_e."""
    return torch.full(task_N.shape, 1.0, device=task_N.device) / counts.tokens_T.sum()


def sample_mean(task_N: Tensor, counts: Counts, weight_T: Tensor) -> Tensor:
    """Case 2: (1 / B) sum_e S_e / n_e."""
    return 1.0 / (counts.tokens_N * counts.examples_T.sum())


def task_token_mean(task_N: Tensor, counts: Counts, weight_T: Tensor) -> Tensor:
    """Case 3, the paper's recommendation: sum_t w_t (S_t / n_t) / sum_t w_t over the tasks present."""
    return _share_of_present(counts, weight_T)[task_N] / counts.tokens_T[task_N]


def task_sample_mean(task_N: Tensor, counts: Counts, weight_T: Tensor) -> Tensor:
    """Case 4: case 3 with (1 / k_t) sum_{e in t} S_e / n_e in place of S_t / n_t."""
    return _share_of_present(counts, weight_T)[task_N] / (counts.examples_T[task_N] * counts.tokens_N)


def _share_of_present(counts: Counts, weight_T: Tensor) -> Tensor:
    """Return w_t / sum of w over the tasks present, [T]; a task absent from the step is left out, not divided by 0.

    All zeros when every task present has weight 0: such a step teaches nothing.
    """
    present_T = weight_T * (counts.tokens_T > 0)
    total = present_T.sum()
    return present_T / torch.where(total > 0, total, torch.ones_like(total))


AGGREGATIONS: dict[str, Callable[[Tensor, Counts, Tensor], Tensor]] = {
    "token_mean": token_mean,
    "sample_mean": sample_mean,
    "task_token_mean": task_token_mean,
    "task_sample_mean": task_sample_mean,
}


def task_units(aggregation: Aggregation, counts: Counts) -> tuple[Tensor, Tensor]:
    """Return what the loss of a task is a mean of: L_t = sum over its tokens of unit_i nll_i, divided by total_t.

    Cases 1 and 3 average over tokens, cases 2 and 4 over examples.

    Returns:
        unit_N, float32 [N]: 1, or 1 / n_e; total_T, int64 [T]: n_t, or k_t.
    """
    if aggregation in ("token_mean", "task_token_mean"):
        return torch.ones_like(counts.tokens_N, dtype=torch.float32), counts.tokens_T
    return 1.0 / counts.tokens_N, counts.examples_T


def token_weights(aggregation: Aggregation, task_N: Tensor, counts: Counts, weight_T: Tensor) -> Tensor:
    """Return the weight of every labelled token, so that the step's loss is ``(weight_N * nll_N).sum()``.

    Args:
        aggregation: one of AGGREGATIONS.
        task_N: task index of every labelled token, shape [N], int64.
        counts: the counts of the whole optimiser step; ``tokens_N`` aligned with ``task_N``.
        weight_T: non-negative task weights, shape [T], float32; cases 1 and 2 do not use them.

    Returns:
        float32 tensor [N]. Empty when nothing is labelled.
    """
    return AGGREGATIONS[aggregation](task_N, counts, weight_T)
