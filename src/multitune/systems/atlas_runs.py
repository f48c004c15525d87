"""How the arms of system 25 compose the task vectors of its test bed, through what anybody calls on any model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from multitune.systems.claims import Metrics
from multitune.systems.task_vector_testbed import Bed, Rows, TargetTask, accuracy, build_bed, fine_tune
from multitune.weights.learned.adamerging import adamerging
from multitune.weights.learned.blocks import Grouping
from multitune.weights.learned.composition import Composition, composed
from multitune.weights.learned.config import SETTINGS, LearningConfig
from multitune.weights.learned.disentanglement import mean_disentanglement_error
from multitune.weights.learned.learning import Learned, initial_gradient, learn_coefficients
from multitune.weights.learned.objectives import cross_entropy
from multitune.weights.learned.routes import Forward, Loss
from multitune.weights.learned.search import search_coefficients
from multitune.weights.learned.selection import blockwise_selection, whole_selection, whole_vectors
from multitune.weights.learned.tasks import (
    Labelled,
    Unlabelled,
    View,
    accuracy_on,
    entropy_task,
    labelled_task,
    negation_score,
    normalised_accuracy,
    simclr_task,
    ufm_task,
)
from multitune.weights.learned.vectors import dense_vector

GRID = [number / 20 for number in range(31)]  # 0 to 1.5: where the searched scalar looks
BATCH = 128  # rows per step of all tasks together, as published

Settings = Mapping[str, Any]


@lru_cache(maxsize=1)
def bed_of(seed: int, targets: int, steps: int) -> Bed:
    """Return the test bed of a seed; all arms of a seed share it, so the first one's seconds hold its making."""
    return build_bed(seed, targets, steps)


def measure(settings: Settings, seed: int) -> Metrics:
    """Return what one arm measures on the seed's test bed; see ``atlas.run_small``."""
    return ARMS[settings["do"]](bed_of(seed, settings["targets"], settings["tuning_steps"]), settings, seed)


# -- one model for all tasks -------------------------------------------------------------------------------------------


def zero_shot(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """The pretrained encoder under the frozen heads."""
    return _accuracies(bed, bed.base.state_dict())


def own_fine_tuned(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """Every task by the encoder that was tuned to it: five models."""
    pairs = zip(bed.tasks, bed.fine_tuned, strict=True)
    return _by_task("accuracy", [accuracy(bed.base, tuned, task) for task, tuned in pairs])


def full_fine_tuning(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """All weights trained on the rows that the coefficients learn from."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(task, task.learn) for task in bed.tasks]
    return _accuracies(bed, fine_tune(bed.base, rows, settings["tuning_steps"], generator))


def searched_scalar(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """One coefficient for the sum of all vectors: the best of a grid on the test rows, which flatters it."""
    composition = composed(bed.base, _vectors(bed), "all")
    found = [Learned(composition.start(value), composition, 0) for value in GRID]
    return max((_folded(bed, one) for one in found), key=lambda metrics: metrics["accuracy/mean"])


def learned(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """Coefficients learned by cross-entropy on the tasks' few rows, by tensor or one per vector, of all or of some."""
    share = BATCH // len(bed.tasks)
    tasks = [
        labelled_task(task.name, _labelled(task.learn), task.logits, batch_size=share, seed=seed * 100 + number)
        for number, task in enumerate(bed.tasks)
    ]
    config = LearningConfig(learning_rate=2e-2, epochs=settings["steps"] // _steps(bed, share))
    score = normalised_accuracy(_own_accuracies(bed))
    losses = [_cross_entropy(task, task.learn) for task in bed.tasks]
    compositions = _selected(bed, _vectors(bed), settings["by"], settings["select"], losses)
    return _mean_of(
        [_folded(bed, learn_coefficients(bed.base, one, tasks, config, evaluate=score)) for one in compositions]
    )


def adamerged(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """AdaMerging per tensor: entropy on the same rows, without their labels; 16 rows per task and step."""

    tasks = [
        entropy_task(
            task.name,
            Unlabelled(len(task.learn.inputs), partial(_view, task.learn.inputs)),
            task.logits,
            margin=None,
            batch_size=16,
            seed=seed * 100 + number,
        )
        for number, task in enumerate(bed.tasks)
    ]
    config = SETTINGS["adamerging"].model_copy(update={"epochs": math.ceil(settings["steps"] / _steps(bed, 16))})
    return _folded(bed, adamerging(bed.base, _vectors(bed), tasks, "layer", config))


def searched_isotropic(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """One coefficient per vector by CMA-ES, which sees accuracy on the few rows instead of gradients."""
    composition = composed(bed.base, _vectors(bed), "all")
    score = normalised_accuracy(_own_accuracies(bed))
    evaluations = settings["evaluations"]
    return _folded(bed, search_coefficients(bed.base, composition, score, evaluations=evaluations, seed=seed))


# -- a new task from the vectors of the others -------------------------------------------------------------------------


def few_shot(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """Every task in turn from the other tasks' vectors, whose coefficients are learned from 16 rows per class.

    The epoch is chosen on the labelled rows that the 16 leave over, the start among the epochs.
    """
    found = []
    for number, task in enumerate(bed.tasks):
        others = [vector for other, vector in enumerate(_vectors(bed)) if other != number]
        shots, rest = _shots(task.learn, settings["shots"])
        asked = labelled_task(
            task.name, _labelled(shots), task.logits, batch_size=BATCH, least_batches=10, seed=seed * 100 + number
        )
        score = accuracy_on(_labelled(rest), task.logits)
        accuracies = [
            accuracy(bed.base, dict(kept.tensors()), task)
            for one in _selected(bed, others, "tensor", settings["select"], [_cross_entropy(task, shots)])
            for kept in [learn_coefficients(bed.base, one, [asked], SETTINGS["few-shot"], evaluate=score)]
        ]
        found.append(_mean(accuracies))
    return _by_task("few-shot", found)


def test_time(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """Every task in turn from the other tasks' vectors and its test rows without their labels, as published.

    Views add normal noise to the inputs, whose own deviation is 1: 0.1 for a weak view, 0.5 for a strong one.
    """
    found = []
    for number, task in enumerate(bed.tasks):
        others = [vector for other, vector in enumerate(_vectors(bed)) if other != number]
        rows = Unlabelled(len(task.test.inputs), partial(_view, task.test.inputs))
        own = seed * 100 + number
        config = SETTINGS["test-time"]
        objective = settings["objective"]
        if objective == "entropy":
            asked = entropy_task(task.name, rows, task.logits, batch_size=BATCH, seed=own)
            config = config.model_copy(update={"sharpness_radius": 0.05})
        elif objective == "simclr":
            asked = simclr_task(task.name, rows, batch_size=BATCH, seed=own)
        else:
            asked = ufm_task(
                task.name,
                rows,
                task.logits,
                epochs=config.epochs,
                exponent=settings["exponent"],
                batch_size=BATCH,
                seed=own,
            )
        kept = learn_coefficients(bed.base, others, [asked], config)
        found.append(accuracy(bed.base, dict(kept.tensors()), task))
    return _by_task("test-time", found)


# -- one skill less ----------------------------------------------------------------------------------------------------


def negation(bed: Bed, settings: Settings, seed: int) -> Metrics:
    """Every task in turn unlearned by its own vector, the others as the control; test accuracies, means over turns.

    Coefficients are learned, or one searched on a grid down to -1.5; either is kept by accuracy on the few rows: the
    lowest of the target at which the control holds 95 %.
    """
    targets, controls = [], []
    for number, task in enumerate(bed.tasks):
        others = [other for other in bed.tasks if other is not task]
        control = _mean_accuracy(others)
        score = negation_score(accuracy_on(_labelled(task.learn), task.logits), control)
        by = settings["by"]
        composition = composed(bed.base, [_vectors(bed)[number]], by)
        if by == "all":
            tried = [(-value, score(_composed_encoder(bed, composition, -value))) for value in GRID]
            kept = Learned(composition.start(max(tried, key=lambda one: one[1])[0]), composition, 0)
        else:
            share = BATCH // 2 // len(others)
            asked = [
                labelled_task(task.name, _labelled(task.learn), task.logits, batch_size=64, weight=-1.0, seed=seed),
                *(
                    labelled_task(one.name, _labelled(one.learn), one.logits, batch_size=share, weight=1 / len(others))
                    for one in others
                ),
            ]
            kept = learn_coefficients(bed.base, composition, asked, SETTINGS["negation"], evaluate=score)
        weights = dict(kept.tensors())
        targets.append(accuracy(bed.base, weights, task))
        controls.append(_mean([accuracy(bed.base, weights, one) for one in others]))
    return {"negation/target": _mean(targets), "negation/control": _mean(controls)}


def _mean_accuracy(tasks: Sequence[TargetTask]) -> Callable[[Forward], float]:
    parts = [accuracy_on(_labelled(task.learn), task.logits) for task in tasks]
    return lambda forward: _mean([part(forward) for part in parts])


def _composed_encoder(bed: Bed, composition: Composition, value: float) -> Forward:
    weights = dict(composition.tensors(composition.start(value)))
    return lambda inputs: torch.func.functional_call(bed.base, weights, (inputs,))


ARMS: dict[str, Callable[[Bed, Settings, int], Metrics]] = {
    "zero-shot": zero_shot,
    "own": own_fine_tuned,
    "full": full_fine_tuning,
    "scalar": searched_scalar,
    "learned": learned,
    "adamerging": adamerged,
    "search": searched_isotropic,
    "few-shot": few_shot,
    "test-time": test_time,
    "negation": negation,
}


# -- what the arms share -----------------------------------------------------------------------------------------------


def _selected(bed: Bed, vectors: Sequence[Any], by: Grouping, select: str, losses: Sequence[Loss]) -> list[Composition]:
    """Return the compositions of all vectors, or of a choice of one: several where the choice is random.

    A random choice is averaged over all that there are, so that no draw favours or harms it.
    """
    everything = composed(bed.base, vectors, by)
    count, columns = len(vectors), everything.blocks.columns
    if select == "all":
        return [everything]
    if select == "random":
        masks = [whole_vectors(torch.tensor([number]), count, columns) for number in range(count)]
    else:
        choose = {"blockwise": blockwise_selection, "whole": whole_selection}[select]
        masks = [choose(initial_gradient(bed.base, everything, losses), 1)]
    return [composed(bed.base, vectors, by, chosen_NC=mask) for mask in masks]


def _vectors(bed: Bed) -> list[Any]:
    return [dense_vector(delta) for delta in bed.deltas()]


def _labelled(rows: Rows) -> Labelled:
    return Labelled(len(rows.labels), lambda drawn: (rows.inputs[drawn], rows.labels[drawn]))


def _view(inputs: Tensor, drawn: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """Return rows with noise."""
    noise = {"plain": 0.0, "weak": 0.1, "strong": 0.5}[view]
    rows = inputs[drawn]
    return rows + noise * torch.randn(rows.shape, generator=generator) if noise else rows


def _steps(bed: Bed, batch_size: int) -> int:
    """Return how many batches the few rows of a task make."""
    return math.ceil(len(bed.tasks[0].learn.labels) / batch_size)


def _shots(rows: Rows, per_class: int) -> tuple[Rows, Rows]:
    """Return the first rows of every class, and all others."""
    own_BL = torch.nn.functional.one_hot(rows.labels)
    place_B = (own_BL.cumsum(0) * own_BL).sum(-1)
    taken = place_B <= per_class
    return Rows(rows.inputs[taken], rows.labels[taken]), Rows(rows.inputs[~taken], rows.labels[~taken])


def _cross_entropy(task: TargetTask, rows: Rows) -> Loss:
    return lambda forward: cross_entropy(task.logits(forward, rows.inputs), rows.labels)


def _own_accuracies(bed: Bed) -> list[tuple[Callable[[Forward], float], float]]:
    """Return per task its accuracy on the few rows, and its own fine-tuned model's there."""
    return [
        (accuracy_on(_labelled(task.learn), task.logits), accuracy(bed.base, tuned, task, task.learn))
        for task, tuned in zip(bed.tasks, bed.fine_tuned, strict=True)
    ]


def _folded(bed: Bed, found: Learned) -> Metrics:
    inputs = [task.test.inputs for task in bed.tasks]
    error = mean_disentanglement_error(bed.base, found, inputs, [task.logits for task in bed.tasks])
    return dict(_accuracies(bed, dict(found.tensors()))) | {"disentanglement/error": error}


def _accuracies(bed: Bed, weights: Mapping[str, Tensor]) -> Metrics:
    return _by_task("accuracy", [accuracy(bed.base, weights, task) for task in bed.tasks])


def _by_task(group: str, accuracies: list[float]) -> dict[str, float]:
    by_task = {f"{group}/task{number + 1}": one for number, one in enumerate(accuracies)}
    return by_task | {f"{group}/mean": _mean(accuracies)}


def _mean_of(metrics: Sequence[Metrics]) -> Metrics:
    return {name: _mean([one[name] for one in metrics]) for name in metrics[0]}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
