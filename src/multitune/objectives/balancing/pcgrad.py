"""PCGrad (Yu et al. 2020, arXiv 2001.06782): gradients that conflict are projected off one another.

Shape legend: ``T`` tasks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from multitune.objectives.balancing.balancer import Balancer, on_cpu
from multitune.objectives.balancing.config import PCGradConfig


class PCGrad(Balancer):
    """Mean over tasks of every task's gradient, projected off the gradients that it conflicts with in random order.

    The paper sums over tasks; the mean equals uniform weights where nothing conflicts. A projected gradient stays a
    combination of task gradients, so its coefficients are all that is kept of it.
    """

    uses_gradients: ClassVar[bool] = True
    STATE: ClassVar[tuple[str, ...]] = ("generator_state",)

    def __init__(self, config: PCGradConfig, tasks: int, seed: int) -> None:
        super().__init__(config, tasks, seed)
        self.generator_state = torch.Generator().manual_seed(seed).get_state()

    def coefficients(self, gram_TT: Tensor, loss_T: Tensor, present_T: Tensor) -> Tensor:
        present = present_T.cpu().nonzero().flatten()
        gram_PP = on_cpu(gram_TT)[present][:, present]
        generator = torch.Generator()
        generator.set_state(self.generator_state)
        projected_PP = projections(gram_PP, [torch.randperm(len(present), generator=generator) for _ in present])
        self.generator_state = generator.get_state()
        coefficient_T = torch.zeros(self.tasks, dtype=torch.float64)
        coefficient_T[present] = projected_PP.sum(0) / max(len(present), 1)
        return coefficient_T


def projections(gram_TT: Tensor, orders: list[Tensor]) -> Tensor:
    """Coefficients of every task's projected gradient, [T, T]: row i gives task i's in terms of all task gradients.

    Args:
        gram_TT: products of the task gradients, float64.
        orders: for every task, the order in which it meets all tasks.
    """
    coefficient_TT = torch.eye(len(gram_TT), dtype=torch.float64)
    for i, order in enumerate(orders):
        for j in order.tolist():
            product = coefficient_TT[i] @ gram_TT[:, j]
            if j != i and product < 0 and gram_TT[j, j] > 0:
                coefficient_TT[i, j] -= product / gram_TT[j, j]
    return coefficient_TT
