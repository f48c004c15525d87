"""Focal losses over examples and tasks (MFTCoder, arXiv 2311.02303): what is still hard counts more.

Shape legend: ``N`` labelled tokens, ``E`` examples, ``T`` tasks.

P and Q are means of p and log p over an example's labelled tokens (sample level) or, over a task's examples, of those
means (task level). The loss is the mean over tasks of -alpha (1 - P)^gamma Q, at sample level the mean over tasks of
the mean over their examples. Both are the weighted sum ``weight_N * nll_N`` of ``task_sample_mean`` with a factor per
example or task, so user weights of tasks enter as everywhere.

Where P and Q are known, the loss is linear in every token's p and log p: with the coefficients returned here, held
constant,

    (a_N * nll_N).sum()                              is the focal loss, and
    (a_N * nll_N + b_N * (-nll_N).exp()).sum()       has its gradient,

also when the tokens of the step are summed over micro-batches and processes. The sample level knows P and Q after the
forward pass of the example's own row. The task level needs ``task_means`` of the whole step first: one forward pass
more per step, without gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multitune.objectives.aggregation import Counts


def sample_coefficients(
    nll_N: Tensor,
    task_N: Tensor,
    example_N: Tensor,
    weight_N: Tensor,
    alpha_T: Tensor,
    gamma: float,
    detach_factor: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return a_N and b_N of the sample-level focal loss, each float32 [N] and without a graph.

    Args:
        nll_N: token losses; every example must be here with all of its labelled tokens (a micro-batch is enough).
        task_N: task index of every token, int64.
        example_N: example id of every token, int64.
        weight_N: the tokens' weights by the aggregation ``task_sample_mean`` over the whole step.
        alpha_T: factor of every task.
        gamma: 0 or more.
        detach_factor: keep (1 - P)^gamma out of the gradient: b is 0.
    """
    _, index_N, count_E = torch.unique(example_N, return_inverse=True, return_counts=True)
    nll_N = nll_N.detach()
    miss_E = _sums(-torch.expm1(-nll_N), index_N, len(count_E)) / count_E
    q_E = -_sums(nll_N, index_N, len(count_E)) / count_E
    return _coefficients(miss_E[index_N], q_E[index_N], weight_N * alpha_T[task_N], gamma, detach_factor)


def task_means(
    nll_N: Tensor, task_N: Tensor, counts: Counts, reduce: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return 1 - P and Q of every task over the whole optimiser step, each [T]; 0 where a task is absent.

    Args:
        nll_N: token losses of the step on this process.
        task_N: task index of every token, int64.
        counts: counts of the whole step, ``tokens_N`` aligned with ``task_N``.
        reduce: sums a [2, T] tensor over processes; None on a single process.
    """
    nll_N = nll_N.detach()
    each_N = counts.tokens_N * counts.examples_T[task_N]
    tasks = len(counts.examples_T)
    sums_2T = torch.stack((
        _sums(-torch.expm1(-nll_N) / each_N, task_N, tasks),
        _sums(-nll_N / each_N, task_N, tasks),
    ))  # fmt: skip
    if reduce is not None:
        sums_2T = reduce(sums_2T)
    return sums_2T[0], sums_2T[1]


def task_coefficients(
    miss_T: Tensor,
    q_T: Tensor,
    task_N: Tensor,
    weight_N: Tensor,
    alpha_T: Tensor,
    gamma: float,
    detach_factor: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return a_N and b_N of the task-level focal loss, each float32 [N] and without a graph.

    Args:
        miss_T: 1 - P of every task, from ``task_means``.
        q_T: Q of every task, from ``task_means``.
        task_N: task index of every token, int64; any part of the step's tokens.
        weight_N: their weights by the aggregation ``task_sample_mean`` over the whole step.
        alpha_T: factor of every task.
        gamma: 0 or more.
        detach_factor: keep (1 - P)^gamma out of the gradient: b is 0.
    """
    return _coefficients(miss_T[task_N], q_T[task_N], weight_N * alpha_T[task_N], gamma, detach_factor)


def _coefficients(
    miss_N: Tensor, q_N: Tensor, weight_N: Tensor, gamma: float, detach_factor: bool
) -> tuple[Tensor, Tensor]:
    """Differentiate -w (1 - P)^gamma Q: by Q, which is the mean of -nll, and by P, the mean of p."""
    # 1 - P comes as a sum of -expm1(-nll): near P = 1 the difference itself would have no digits left
    miss_N = miss_N.clamp_min(torch.finfo(miss_N.dtype).tiny)
    a_N = weight_N * miss_N**gamma
    if detach_factor or gamma == 0:
        return a_N, torch.zeros_like(a_N)
    return a_N, weight_N * gamma * miss_N ** (gamma - 1) * q_N


def _sums(value_N: Tensor, index_N: Tensor, length: int) -> Tensor:
    return torch.zeros(length, dtype=value_N.dtype, device=value_N.device).index_add_(0, index_N, value_N)
