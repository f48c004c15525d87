"""The gradients of every task apart, and the one combined from them that the optimiser sees.

    g = sum_t c_t g_t,    c = balancer.coefficients(G G^T)

Costs one backward pass per task present in a micro-batch, and T x P numbers of memory, where uniform weights cost one
pass and P numbers.

Shape legend: ``T`` tasks, ``P`` parameters that the tasks share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class TaskGradients:
    """Adds up every task's gradient over the micro-batches of one optimiser step.

    Args:
        shared: parameters that every task trains: what the balancer sees.
        own: parameters of single tasks (heads); they get the gradient of the mean over tasks.
        tasks: T.
        reduce: sums a tensor over processes; None on a single one.
    """

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        own: Sequence[nn.Parameter],
        tasks: int,
        reduce: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.shared, self.own = list(shared), list(own)
        self._reduce = reduce
        device = self.shared[0].device
        self._gradient_TP = torch.zeros(tasks, sum(p.numel() for p in self.shared), device=device)
        self._own = [torch.zeros_like(p) for p in self.own]
        self._used = torch.zeros(len(self.shared) + len(self.own), device=device)  # tasks whose loss reached each
        self._step_is_new = True

    def add(self, loss_T: Tensor) -> None:
        """Add the gradients of one micro-batch's part of every task's loss: one backward pass for each task in it."""
        if self._step_is_new:
            for tensor in (self._gradient_TP, self._used, *self._own):
                tensor.zero_()
            self._step_is_new = False
        tasks = loss_T.detach().nonzero().flatten().tolist()  # a task whose loss is exactly 0 has no gradient either
        for task in tasks:
            gradients = torch.autograd.grad(
                loss_T[task], [*self.shared, *self.own], retain_graph=task != tasks[-1], allow_unused=True
            )
            self._used += torch.tensor([float(gradient is not None) for gradient in gradients]).to(self._used)
            start = 0
            for parameter, gradient in zip(self.shared, gradients, strict=False):
                if gradient is not None:
                    self._gradient_TP[task, start : start + parameter.numel()] += gradient.flatten()
                start += parameter.numel()
            for total, gradient in zip(self._own, gradients[len(self.shared) :], strict=True):
                if gradient is not None:
                    total += gradient

    def combine(self, coefficients: Callable[[Tensor], Tensor], present_T: Tensor) -> None:
        """Give every parameter its gradient for the optimiser; None to those that no task's loss reached.

        Args:
            coefficients: from the Gram matrix of the task gradients, float64 [T, T], to their coefficients [T].
            present_T: which tasks count in the step, bool [T].
        """
        if self._reduce is not None:
            self._gradient_TP = self._reduce(self._gradient_TP)
            self._own = [self._reduce(gradient) for gradient in self._own]
            self._used = self._reduce(self._used)
        used = (self._used > 0).tolist()
        gram_TT = (self._gradient_TP @ self._gradient_TP.T).double()
        weight_T = coefficients(gram_TT)
        flat_P = weight_T.to(self._gradient_TP) @ self._gradient_TP
        parts = flat_P.split([p.numel() for p in self.shared])
        for parameter, part, reached in zip(self.shared, parts, used, strict=False):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if reached else None
        for parameter, gradient, reached in zip(self.own, self._own, used[len(parts) :], strict=True):
            parameter.grad = gradient / present_T.sum() if reached else None
        self._step_is_new = True
