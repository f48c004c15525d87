"""What every balancer has in common: its promises to the training loop, and its state.

Shape legend: ``T`` tasks. All state and all results are float64 on the CPU: a few numbers per task, whose sums must not
depend on the device or precision of the training.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from multitune.errors import MultituneError
from multitune.objectives.balancing.config import BalancerConfig

Observed = Literal["nothing", "validation", "step", "training"]


class Balancer:
    """Weights of tasks; as it stands, uniform ones.

    Args:
        config: the method's options.
        tasks: number of tasks T, in the order of the mixture's task ids.
        seed: of methods that draw; the same on every process.

    Attributes:
        observes: which task losses ``observe`` is told: ``validation`` losses after a step, the losses the ``step``
            itself had (they cost nothing), or the losses of the same ``training`` batch once more after the step.
        uses_step_losses: ``weights`` needs the step's own training losses before the backward pass.
        uses_gradients: the training loop asks ``coefficients`` of task gradients instead of ``weights``.
        STATE: names of the attributes, all tensors, that determine everything to come.
    """

    observes: Observed = "nothing"
    uses_step_losses: ClassVar[bool] = False
    uses_gradients: ClassVar[bool] = False
    STATE: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: BalancerConfig, tasks: int, seed: int) -> None:
        self.config, self.tasks, self.seed = config, tasks, seed

    def weights(self, loss_T: Tensor | None, present_T: Tensor) -> Tensor:
        """Weights of the coming step: positive where a task is present, 0 elsewhere, sum 1 (0 if none is present).

        Args:
            loss_T: the step's own training losses, NaN where absent; None unless ``uses_step_losses``.
            present_T: bool, which tasks have labelled tokens in this step.
        """
        return share(torch.ones(self.tasks, dtype=torch.float64), present_T)

    def due(self, step: int) -> bool:
        """Whether ``observe`` wants to be told after this optimiser step; step 0 is before the first."""
        return step > 0 and self.observes != "nothing"

    def observe(self, step: int, loss_T: Tensor, present_T: Tensor) -> None:
        """Take note of task losses. A balancer that observes nothing has nothing to note.

        Args:
            step: optimiser steps done so far.
            loss_T: losses, NaN where absent.
            present_T: bool, which tasks have a loss.
        """

    def coefficients(self, gram_TT: Tensor, loss_T: Tensor, present_T: Tensor) -> Tensor:
        """Coefficients of the task gradients: the step's gradient is ``coefficients @ G``.

        Args:
            gram_TT: G G^T of the task gradients G [T, parameters]; rows and columns of absent tasks are not read.
            loss_T: the step's own training losses, NaN where absent.
            present_T: bool, which tasks are present.
        """
        return self.weights(loss_T, present_T)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all state; a balancer that loads it goes on exactly as this one."""
        return {name: getattr(self, name).clone() for name in self.STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            MultituneError: when the state is another balancer's.
        """
        if set(state) != set(self.STATE):
            raise MultituneError(
                f"The saved state of the balancer has {sorted(state)} where {sorted(self.STATE)} belong.",
                "training.balancer",
                "Resume with the balancer that the run was started with, or start a new run.",
            )
        for name in self.STATE:
            setattr(self, name, state[name].detach().clone().cpu())


def share(weight_T: Tensor, present_T: Tensor) -> Tensor:
    """Return w_t / sum of w over the tasks present, 0 for the others; never 0 for a task present, also in float32."""
    present_T = present_T.cpu()
    kept_T = torch.where(present_T, weight_T, 0.0)
    total = kept_T.sum()
    kept_T = kept_T / torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(present_T, kept_T.clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def on_cpu(tensor: Tensor) -> Tensor:
    """Return the tensor without its graph as float64 on the CPU."""
    return tensor.detach().to("cpu", torch.float64)


def unknown(*shape: int) -> Tensor:
    """Return a float64 tensor of NaN: values not seen yet."""
    return torch.full(shape, torch.nan, dtype=torch.float64)
