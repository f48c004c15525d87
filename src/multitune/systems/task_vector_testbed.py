"""A test bed of task vectors that share one teacher, in which the small reproductions of aTLAS and Breadcrumbs measure.

A residual network is pretrained on 12 auxiliary tasks whose labels all read one random two-layer feature map. New tasks
read the same map, each around an input mean of its own, through a head that is frozen: prototypes of three examples
per class. Fine-tuning the network to each of them gives task vectors; nothing but the network ever moves.

Shape legend: ``B`` rows, ``X`` inputs (24), ``W`` width (48), ``C`` classes (6), ``F`` features of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from multitune.errors import MultituneError

INPUTS, WIDTH, BLOCKS, CLASSES = 24, 48, 6, 6
TEACHER_HIDDEN, TEACHER_FEATURES = 64, 32
AUXILIARY_TASKS, AUXILIARY_ROWS = 12, 2000
SHOTS, SHARPNESS = 3, 20.0
PRETRAINING_STEPS = 1500
TRAIN_ROWS, LEARN_ROWS, TEST_ROWS = 2000, 150, 1000
MEAN_SPREAD = 0.75  # standard deviation of a new task's input mean; inputs around it have 1

State = dict[str, Tensor]


class ResidualBlock(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x_BW: Tensor) -> Tensor:
        """Return [B, W]."""
        return x_BW + self.down(functional.gelu(self.up(self.norm(x_BW))))


class Encoder(nn.Module):
    """Inputs [B, X] to features of length one [B, W]: 6 residual blocks between an inlet and a norm, 40 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(INPUTS, WIDTH)
        self.layers = nn.ModuleList(ResidualBlock(WIDTH) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x_BX: Tensor) -> Tensor:
        """Return [B, W], each row of Euclidean length one."""
        x_BW = self.inlet(x_BX)
        for layer in self.layers:
            x_BW = layer(x_BW)
        return functional.normalize(self.norm(x_BW), dim=-1)


@dataclass(frozen=True)
class Rows:
    """Inputs [B, X] and labels [B]."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TargetTask:
    """A new task: its frozen head [C, W], and rows that share none.

    Attributes:
        train: what its task vector is trained on.
        learn: few labelled rows, on which coefficients may be learned and epochs chosen.
        test: seen by nothing that is learned or chosen.
    """

    name: str
    head: Tensor
    train: Rows
    learn: Rows
    test: Rows

    def logits(self, forward: Callable[[Tensor], Tensor], inputs_BX: Tensor) -> Tensor:
        """Return the logits [B, C] of an encoder, or of anything that maps inputs to features."""
        return forward(inputs_BX) @ self.head.T


@dataclass(frozen=True)
class Bed:
    """The pretrained encoder, the new tasks, and for each of them the weights fine-tuned to it, in their order."""

    base: Encoder
    tasks: tuple[TargetTask, ...]
    fine_tuned: tuple[State, ...]

    def deltas(self) -> list[State]:
        """Return the task vectors: fine-tuned minus pretrained weights."""
        base = self.base.state_dict()
        return [{name: tuned[name] - base[name] for name in base} for tuned in self.fine_tuned]


def build_bed(seed: int, targets: int = 5, steps: int = 300) -> Bed:
    """Return the test bed of a seed: pretrain, draw new tasks, fine-tune to each of them.

    Args:
        targets: number of new tasks (5 in system 25, 8 in system 29); the first ones are the same whatever it is.
        steps: of every fine-tuning (300 in system 25, 200 in system 29).

    Raises:
        MultituneError: no new task, or no step.
    """
    if targets < 1 or steps < 1:
        raise MultituneError(
            f"The test bed cannot have {targets} new tasks tuned for {steps} steps.",
            "build_bed",
            "Ask for at least one task and one step.",
        )
    teacher = _Teacher(_generator(seed, "teacher"))
    base = _pretrained(teacher, seed)
    tasks = tuple(_target_task(teacher, base, number, _generator(seed, f"task {number}")) for number in range(targets))
    tuned = tuple(
        fine_tune(base, [(task, task.train)], steps, _generator(seed, f"tuning {number}"))
        for number, task in enumerate(tasks)
    )
    return Bed(base, tasks, tuned)


def fine_tune(
    base: Encoder, tasks: list[tuple[TargetTask, Rows]], steps: int, generator: torch.Generator, rate: float = 1e-3
) -> State:
    """Return the encoder's weights after training all of it on rows of one task or, with equal shares, of several.

    AdamW at a rate that falls linearly to 0, batches of 64 rows per task, torch's weight decay; heads stay frozen.
    """
    encoder = Encoder()
    encoder.load_state_dict(base.state_dict())

    def loss() -> Tensor:
        losses = []
        for task, rows in tasks:
            drawn = torch.randint(len(rows.labels), (64,), generator=generator)
            losses.append(functional.cross_entropy(task.logits(encoder, rows.inputs[drawn]), rows.labels[drawn]))
        return torch.stack(losses).mean()

    _train(list(encoder.parameters()), loss, steps, rate)
    return {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}


def accuracy(base: Encoder, weights: Mapping[str, Tensor], task: TargetTask, rows: Rows | None = None) -> float:
    """Return the share of a task's rows (its test rows when none are given) that given weights label right."""
    rows = rows or task.test
    with torch.no_grad():
        features_BW = torch.func.functional_call(base, dict(weights), (rows.inputs,))
        return float((features_BW @ task.head.T).argmax(-1).eq(rows.labels).double().mean())


# -- what the test bed is made of --------------------------------------------------------------------------------------


class _Teacher:
    """The feature map that all tasks read: two random layers of tanh."""

    def __init__(self, generator: torch.Generator) -> None:
        gain = 1.0  # of each layer, with which zero-shot and fine-tuned accuracy are about those that the card tells
        self.first_FX = gain * torch.randn(TEACHER_HIDDEN, INPUTS, generator=generator) / INPUTS**0.5
        self.second_FF = gain * torch.randn(TEACHER_FEATURES, TEACHER_HIDDEN, generator=generator) / TEACHER_HIDDEN**0.5

    def labels(self, inputs_BX: Tensor, readout_CF: Tensor) -> Tensor:
        """Return the class whose readout is largest; readouts are standardised, so that classes are about as large."""
        features_BF = torch.tanh(torch.tanh(inputs_BX @ self.first_FX.T) @ self.second_FF.T)
        scores_BC = features_BF @ readout_CF.T
        return ((scores_BC - scores_BC.mean(0)) / scores_BC.std(0)).argmax(-1)


def _generator(seed: int, purpose: str) -> torch.Generator:
    """Return a stream of its own for every purpose, so that more tasks or steps disturb nothing that was drawn."""
    number = int.from_bytes(purpose.encode(), "big") % (2**31 - 1)
    return torch.Generator().manual_seed(seed * (2**31 - 1) + number)


def _pretrained(teacher: _Teacher, seed: int) -> Encoder:
    """Train encoder and heads on all auxiliary tasks at once: 64 rows per task and step at 1e-3, decayed."""
    generator = _generator(seed, "pretraining")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder()
    heads_TCW = (torch.randn(AUXILIARY_TASKS, CLASSES, WIDTH, generator=generator)).requires_grad_()
    readouts_TCF = torch.randn(AUXILIARY_TASKS, CLASSES, TEACHER_FEATURES, generator=generator)
    inputs_TBX = torch.randn(AUXILIARY_TASKS, AUXILIARY_ROWS, INPUTS, generator=generator)
    labels_TB = torch.stack([teacher.labels(x, v) for x, v in zip(inputs_TBX, readouts_TCF, strict=True)])

    def loss() -> Tensor:
        drawn = torch.randint(AUXILIARY_ROWS, (64,), generator=generator)
        features_TBW = encoder(inputs_TBX[:, drawn])
        logits_TBC = SHARPNESS * features_TBW @ functional.normalize(heads_TCW, dim=-1).mT
        return functional.cross_entropy(logits_TBC.flatten(0, 1), labels_TB[:, drawn].flatten())

    _train([*encoder.parameters(), heads_TCW], loss, PRETRAINING_STEPS, 1e-3)
    return encoder.requires_grad_(False)


def _target_task(teacher: _Teacher, base: Encoder, number: int, generator: torch.Generator) -> TargetTask:
    """Draw a task: its mean, its readout, its rows, and the prototypes of three rows per class that no split holds."""
    mean_X = MEAN_SPREAD * torch.randn(INPUTS, generator=generator)
    readout_CF = torch.randn(CLASSES, TEACHER_FEATURES, generator=generator)
    shots = 1000  # of which the first three of each class are taken
    inputs_BX = mean_X + torch.randn(TRAIN_ROWS + LEARN_ROWS + TEST_ROWS + shots, INPUTS, generator=generator)
    labels_B = teacher.labels(inputs_BX, readout_CF)
    parts = iter(_split(inputs_BX, labels_B, (TRAIN_ROWS, LEARN_ROWS, TEST_ROWS, shots)))
    train, learn, test, shot = next(parts), next(parts), next(parts), next(parts)
    with torch.no_grad():
        prototypes = [base(shot.inputs[shot.labels == c][:SHOTS]).mean(0) for c in range(CLASSES)]
    head_CW = SHARPNESS * functional.normalize(torch.stack(prototypes), dim=-1)
    return TargetTask(f"task{number + 1}", head_CW, train, learn, test)


def _split(inputs_BX: Tensor, labels_B: Tensor, sizes: tuple[int, ...]) -> Iterator[Rows]:
    for inputs, labels in zip(inputs_BX.split(sizes), labels_B.split(sizes), strict=True):
        yield Rows(inputs, labels)


def _train(parameters: list[Tensor], loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
