"""What coefficients are learned for: rows with labels, few or to be unlearned, and rows without; scores to keep by.

Rows stay the caller's: a task knows their number and a function that draws some of them, so text, images and tensors,
padded or augmented in whatever way, are all the same here.

Shape legend: ``B`` rows of a batch, ``R`` all rows, ``L`` classes, ``W`` width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from multitune.errors import MultituneError
from multitune.weights.learned.learning import LearningTask
from multitune.weights.learned.objectives import (
    UNTRUSTED,
    cross_entropy,
    entropy,
    reliable_entropy,
    simclr,
    trusted_rows,
    ufm,
)
from multitune.weights.learned.routes import Forward

View = Literal["plain", "weak", "strong"]
Logits = Callable[[Forward, Any], Tensor]
"""(the composed model, inputs) -> logits [B, L], or embeddings [B, W]; a frozen head is applied here."""


def called(forward: Forward, inputs: Any) -> Tensor:
    """Return what the model returns for one input tensor: the logits of models that need nothing else."""
    output: Tensor = forward(inputs)
    return output


@dataclass(frozen=True)
class Labelled:
    """Rows with labels.

    Attributes:
        count: R.
        draw: row numbers [B] -> (inputs, labels [B]).
    """

    count: int
    draw: Callable[[Tensor], tuple[Any, Tensor]]


@dataclass(frozen=True)
class Unlabelled:
    """Rows without labels, in views of growing distortion.

    Attributes:
        count: R.
        draw: (row numbers [B], view, a generator for what is random in it) -> inputs.
    """

    count: int
    draw: Callable[[Tensor, View, torch.Generator], Any]


def labelled_task(
    name: str,
    rows: Labelled,
    logits: Logits = called,
    *,
    batch_size: int = 128,
    least_batches: int = 1,
    weight: float = 1.0,
    seed: int = 0,
) -> LearningTask:
    """Return cross-entropy on labelled rows as a task.

    Addition takes one per task, each with its share of the batch; negation the target with weight -1 and a control
    with weight 1; few-shot adaptation one with ``least_batches`` 10, which goes through the rows again until an epoch
    has as many.
    """
    _some_rows(name, rows.count, batch_size)

    def loss(forward: Forward, drawn_B: Tensor) -> Tensor:
        inputs, labels_B = rows.draw(drawn_B)
        return cross_entropy(logits(forward, inputs), labels_B)

    def batches(epoch: int, forward: Forward) -> list[Tensor]:
        return shuffled(rows.count, batch_size, _of_epoch(seed, epoch), least_batches)

    return LearningTask(name, batches, loss, weight)


def entropy_task(
    name: str,
    rows: Unlabelled,
    logits: Logits = called,
    *,
    margin: float | None = 0.4,
    batch_size: int = 128,
    seed: int = 0,
) -> LearningTask:
    """Return the entropy of predictions as a task: of reliable rows (SAR), or of all with margin None (AdaMerging)."""
    _some_rows(name, rows.count, batch_size)

    def loss(forward: Forward, batch: tuple[Tensor, torch.Generator]) -> Tensor:
        logits_BL = logits(forward, rows.draw(batch[0], "plain", batch[1]))
        return entropy(logits_BL) if margin is None else reliable_entropy(logits_BL, margin)

    return LearningTask(name, _with_generator(rows.count, batch_size, seed), loss)


def simclr_task(
    name: str,
    rows: Unlabelled,
    embed: Logits = called,
    *,
    temperature: float = 0.5,
    batch_size: int = 128,
    seed: int = 0,
) -> LearningTask:
    """Return the contrast between two strong views as a task, on embeddings [B, W]."""
    _some_rows(name, rows.count, batch_size)

    def loss(forward: Forward, batch: tuple[Tensor, torch.Generator]) -> Tensor:
        one_BW, other_BW = (embed(forward, rows.draw(batch[0], "strong", batch[1])) for _ in range(2))
        return simclr(one_BW, other_BW, temperature)

    return LearningTask(name, _with_generator(rows.count, batch_size, seed), loss)


def ufm_task(
    name: str,
    rows: Unlabelled,
    logits: Logits = called,
    *,
    epochs: int,
    exponent: float = 0.5,
    most_trusted: int = 100,
    batch_size: int = 128,
    seed: int = 0,
) -> LearningTask:
    """Return unsupervised FixMatch as a task (see ``objectives.ufm``).

    Trusted rows are estimated anew from the composed model at the start of every epoch, and fill a quarter of each
    batch; the threshold of the others rises linearly from 0.9 in the first batch to 1 in the last of ``epochs``.
    """
    _some_rows(name, rows.count, batch_size)

    def batches(epoch: int, forward: Forward) -> list[tuple[Tensor, Tensor, float, torch.Generator]]:
        generator = _of_epoch(seed, epoch)
        probability_RL = _probabilities(forward, rows, logits, batch_size, generator)
        trusted, labels = trusted_rows(probability_RL, most_trusted)
        label_R = torch.full((rows.count,), UNTRUSTED).index_copy_(0, trusted, labels)
        mixed = quarter_trusted(label_R != UNTRUSTED, batch_size, generator)
        done = [(epoch - 1 + number / max(1, len(mixed) - 1)) / epochs for number in range(len(mixed))]
        return [
            (drawn, label_R[drawn], 0.9 + 0.1 * min(1.0, part), generator)
            for drawn, part in zip(mixed, done, strict=True)
        ]

    def loss(forward: Forward, batch: tuple[Tensor, Tensor, float, torch.Generator]) -> Tensor:
        drawn_B, trusted_B, threshold, generator = batch
        with torch.no_grad():
            weak_BL = logits(forward, rows.draw(drawn_B, "weak", generator))
        strong_BL = logits(forward, rows.draw(drawn_B, "strong", generator))
        return ufm(weak_BL, strong_BL, trusted_B.to(strong_BL.device), threshold, exponent)

    return LearningTask(name, batches, loss)


# -- what is kept ------------------------------------------------------------------------------------------------------


def accuracy_on(rows: Labelled, logits: Logits = called, batch_size: int = 256) -> Callable[[Forward], float]:
    """Return a function: the composed model -> the share of the rows that it labels right."""

    def accuracy(forward: Forward) -> float:
        right = 0
        with torch.no_grad():
            for drawn_B in torch.arange(rows.count).split(batch_size):
                inputs, labels_B = rows.draw(drawn_B)
                right += int(logits(forward, inputs).argmax(-1).eq(labels_B).sum())
        return right / rows.count

    return accuracy


def normalised_accuracy(parts: Sequence[tuple[Callable[[Forward], float], float]]) -> Callable[[Forward], float]:
    """Return a score: the mean over tasks of accuracy / the task's own fine-tuned accuracy (addition keeps by it).

    Args:
        parts: per task its accuracy, and what its own fine-tuned model reaches on the same rows.
    """
    return lambda forward: math.fsum(accuracy(forward) / tuned for accuracy, tuned in parts) / len(parts)


def negation_score(
    target: Callable[[Forward], float], control: Callable[[Forward], float], tolerance: float = 0.95
) -> Callable[[Forward], float]:
    """Return a score: minus the target's accuracy, while the control keeps ``tolerance`` of what it had at first.

    The first call, which ``learn_coefficients`` makes at the start, sets the control's mark. Below it the score is
    minus infinity, which ends the run.
    """
    marks: list[float] = []

    def score(forward: Forward) -> float:
        kept = control(forward)
        if not marks:
            marks.append(tolerance * kept)
        return -target(forward) if kept >= marks[0] else -math.inf

    return score


# -- batches -----------------------------------------------------------------------------------------------------------


def shuffled(rows: int, batch_size: int, generator: torch.Generator, least: int = 1) -> list[Tensor]:
    """Return the row numbers of an epoch's batches: a new order of all rows, and again until there are ``least``."""
    batches: list[Tensor] = []
    while len(batches) < least or not batches:
        batches += torch.randperm(rows, generator=generator).split(batch_size)
    return batches


def quarter_trusted(is_trusted_R: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return an epoch of all untrusted rows in batches a quarter of which are trusted rows, drawn with replacement."""
    trusted, others = is_trusted_R.nonzero().flatten(), (~is_trusted_R).nonzero().flatten()
    if not len(trusted) or not len(others):
        return shuffled(len(is_trusted_R), batch_size, generator)
    quarter = max(1, batch_size // 4)
    order = others[torch.randperm(len(others), generator=generator)]
    return [
        torch.cat([trusted[torch.randint(len(trusted), (quarter,), generator=generator)], part])
        for part in order.split(max(1, batch_size - quarter))
    ]


def _with_generator(
    rows: int, batch_size: int, seed: int
) -> Callable[[int, Forward], list[tuple[Tensor, torch.Generator]]]:
    def batches(epoch: int, forward: Forward) -> list[tuple[Tensor, torch.Generator]]:
        generator = _of_epoch(seed, epoch)
        return [(drawn_B, generator) for drawn_B in shuffled(rows, batch_size, generator)]

    return batches


def _probabilities(
    forward: Forward, rows: Unlabelled, logits: Logits, batch_size: int, generator: torch.Generator
) -> Tensor:
    with torch.no_grad():
        parts = [
            logits(forward, rows.draw(drawn_B, "plain", generator)).softmax(-1).cpu()
            for drawn_B in torch.arange(rows.count).split(batch_size)
        ]
    return torch.cat(parts)


def _of_epoch(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 100_003 + epoch)


def _some_rows(name: str, rows: int, batch_size: int) -> None:
    if rows < 1 or batch_size < 1:
        raise MultituneError(
            f"{rows} rows cannot be drawn in batches of {batch_size}.", f"task {name}", "Give at least one of each."
        )
