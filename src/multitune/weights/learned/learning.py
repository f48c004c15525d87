"""Learning coefficients from batches of one task or many: the loop, what it keeps, and what is made of it.

Shape legend: ``N`` task vectors, ``C`` coefficients of each (blocks times partitions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.weights.learned.composition import Composition, composed
from multitune.weights.learned.config import LearningConfig
from multitune.weights.learned.objectives import regulariser
from multitune.weights.learned.routes import Composed, Forward, Loss, routed
from multitune.weights.learned.vectors import TaskVector


class Batches(Protocol):
    """The batches of one epoch: a list, a DataLoader, anything with a length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class LearningTask:
    """What one task asks of the coefficients.

    Attributes:
        name: for messages.
        batches: (epoch from 1 on, the model as it is composed now) -> the epoch's batches.
        loss: (the composed model, one batch) -> mean loss of the batch []; the composed model is called as the model.
        weight: of the loss in the sum over tasks; -1 unlearns the task.
    """

    name: str
    batches: Callable[[int, Forward], Batches]
    loss: Callable[[Forward, Any], Tensor]
    weight: float = 1.0


@dataclass(frozen=True)
class Learned:
    """Coefficients that were learned, and what they belong to.

    Attributes:
        lam_NC: the coefficients, float64.
        composition: base, vectors and blocks that they scale.
        epoch: after which they were kept; 0 is the start.
        scores: of every epoch, the start among them; empty where nothing was evaluated.
        losses: mean loss of every epoch, without the penalty.
    """

    lam_NC: Tensor
    composition: Composition
    epoch: int
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the composed tensors one by one, rounded once to the base's type: what a checkpoint is written from."""
        yield from self.composition.tensors(self.lam_NC)

    def fold_into(self, model: nn.Module) -> None:
        """Give a model that holds the base's weights the composed ones: nothing of the composition is left to run.

        The base's tensors are replaced, not written over: these coefficients can be folded anew.
        """
        parameters = dict(model.named_parameters())
        for name in self.composition.base:
            parameters[name].data = self.composition.tensor(name, self.lam_NC).to(parameters[name])

    def table(self) -> dict[str, list[float]]:
        """Return for every block its coefficients, vector after vector and, within one, partition after partition."""
        lam_NJK = self.lam_NC.view(len(self.lam_NC), -1, self.composition.blocks.partitions)
        return {label: lam_NJK[:, j].flatten().tolist() for j, label in enumerate(self.composition.blocks.labels)}


def learn_coefficients(
    model: nn.Module,
    vectors: Sequence[TaskVector] | Composition,
    tasks: Sequence[LearningTask],
    config: LearningConfig | None = None,
    *,
    evaluate: Callable[[Forward], float] | None = None,
    companions: Sequence[tuple[Sequence[nn.Parameter], float]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Learned:
    """Learn the coefficients of task vectors that minimise the sum of the tasks' losses; the model comes back unmoved.

    Args:
        model: holds the pretrained weights; any module. A head that the losses use stays frozen.
        vectors: task vectors, every tensor a block of its own; or a ``composed`` model with other blocks, partitions,
            or a selection.
        tasks: at least one. Every step draws one batch of each; an epoch ends with the task that has the fewest.
        config: see there; ``SETTINGS`` holds the published ones. None is aTLAS's for addition.
        evaluate: the composed model -> score, larger is better, on rows that are not the test's. Called before the
            first epoch and after each. minus infinity: not admissible, the run ends. Without it the last epoch is kept.
        companions: (parameters, learning rate) of what the losses use beside the model and is learned along with the
            coefficients, such as a ``CacheHead``; afterwards they hold what they held at the kept epoch.
        progress: called with (epochs done, epochs in all).

    Raises:
        MultituneError: no vectors or tasks, an epoch without batches, a loss, gradient or score that is no number, and
            what ``composed`` raises.
    """
    config = config or LearningConfig()
    if not tasks:
        raise MultituneError("There is no task to learn coefficients from.", "tasks", "Give at least one.")
    composition = vectors if isinstance(vectors, Composition) else composed(model, vectors)
    lam_NC = nn.Parameter(composition.start(config.init))
    groups = [([lam_NC], config.learning_rate), *companions]
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters), "lr": rate, "start": rate} for parameters, rate in groups],
        weight_decay=config.weight_decay,
    )
    moving = [parameter for parameters, _ in groups for parameter in parameters]
    kept = Learned(lam_NC.detach().clone(), composition, 0)
    values = [parameter.detach().clone() for parameter in moving]
    with routed(config.route, model, composition) as route:
        best = -math.inf
        if evaluate is not None:
            best = _scored(evaluate, route, lam_NC, 0)
            kept.scores.append(best)
        for epoch in range(1, config.epochs + 1):
            kept.losses.append(_epoch(route, tasks, config, lam_NC, optimizer, epoch))
            if evaluate is not None:
                kept.scores.append(_scored(evaluate, route, lam_NC, epoch))
            admissible = evaluate is None or kept.scores[-1] > -math.inf
            if admissible and (evaluate is None or config.keep == "last" or kept.scores[-1] > best):
                best = kept.scores[-1] if kept.scores else best
                kept = Learned(lam_NC.detach().clone(), composition, epoch, kept.scores, kept.losses)
                values = [parameter.detach().clone() for parameter in moving]
            if progress is not None:
                progress(epoch, config.epochs)
            if not admissible:
                break
    with torch.no_grad():
        for parameter, value in zip(moving, values, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    return kept


def initial_gradient(model: nn.Module, composition: Composition, losses: Sequence[Loss]) -> Tensor:
    """Return dL/dlam [N, C] of the sum of the losses at the pretrained model, for ``selection``."""
    with routed("streamed", model, composition) as route:
        return route.gradient(composition.start(), losses)[1]


def _epoch(
    route: Composed,
    tasks: Sequence[LearningTask],
    config: LearningConfig,
    lam_NC: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    epoch: int,
) -> float:
    """Learn from one epoch's batches; return the mean loss."""
    forward = route.at(lam_NC.detach())
    drawn = [task.batches(epoch, forward) for task in tasks]
    steps = min(len(batches) for batches in drawn)
    if steps == 0:
        (empty, *_) = [task.name for task, batches in zip(tasks, drawn, strict=True) if not len(batches)]
        raise MultituneError(
            f"Epoch {epoch} has no batch of '{empty}'.", f"task {empty}", "Give rows, or smaller batches."
        )
    total = 0.0
    for step, together in enumerate(zip(*drawn, strict=False)):
        losses = [partial(_weighted, task, batch) for task, batch in zip(tasks, together, strict=True)]
        where = f"epoch {epoch}, step {step + 1}"
        loss, gradient_NC = _slope(route, lam_NC.detach(), losses, config.sharpness_radius, optimizer.zero_grad)
        total += _number(loss, "loss", where)
        if not torch.isfinite(gradient_NC).all():
            raise MultituneError(
                "The gradient of the coefficients is no number.", where, "Look for NaN in the task vectors and data."
            )
        done = (epoch - 1 + step / steps) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = group["start"] * (0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1)
        _move(lam_NC, gradient_NC, config, optimizer)
    return total / steps


def _weighted(task: LearningTask, batch: Any, forward: Forward) -> Tensor:
    return task.weight * task.loss(forward, batch)


def _slope(
    route: Composed, lam_NC: Tensor, losses: Sequence[Loss], radius: float, forget: Callable[[], None]
) -> tuple[float, Tensor]:
    """Return loss and gradient; with a radius, the gradient from that far up the slope.

    Args:
        forget: clears the gradients that companions have gathered.
    """
    forget()
    loss, gradient_NC = route.gradient(lam_NC, losses)
    norm = float(gradient_NC.norm())
    if radius == 0.0 or norm == 0.0 or not math.isfinite(norm):
        return loss, gradient_NC
    forget()
    return loss, route.gradient(lam_NC + radius * gradient_NC / norm, losses)[1]


def _move(lam_NC: nn.Parameter, gradient_NC: Tensor, config: LearningConfig, optimizer: torch.optim.Optimizer) -> None:
    """Take one step of the optimiser, the penalty's gradient included."""
    lam_NC.grad = gradient_NC
    if config.regularise is not None:
        regulariser(lam_NC, config.regularise).backward()
    if config.clip is not None:
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], config.clip)
    optimizer.step()
    if config.clamp is not None:
        with torch.no_grad():
            lam_NC.clamp_(*config.clamp)


def _scored(evaluate: Callable[[Forward], float], route: Composed, lam_NC: Tensor, epoch: int) -> float:
    with torch.no_grad():
        score = float(evaluate(route.at(lam_NC.detach())))
    return _number(score, "score", f"epoch {epoch}") if score != -math.inf else score


def _number(value: float, what: str, where: str) -> float:
    if math.isfinite(value):
        return value
    raise MultituneError(
        f"The {what} of the composed model is {value}.",
        where,
        "Look for NaN in the task vectors and data, or lower the learning rate.",
    )
