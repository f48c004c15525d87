"""The recipe that measures transfer: the train step of another recipe, once per task with the same settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import yaml

from multitune.errors import MultituneError, nearest
from multitune.mixing.policies import Equal
from multitune.recipes.loading import load_recipe
from multitune.recipes.schema import BASE, EstimatorStep, Recipe, TrainStep
from multitune.scoring.score import ScoreConfig, scored_split
from multitune.training.config import TrainingConfig

Pair = tuple[str, str]

UNNAMED = ("equal", "temperature", "capped")
"""Policies that name no task, and are not what a step does anyway."""


@dataclass(frozen=True)
class TransferPlan:
    """What `multitune transfer` runs.

    Attributes:
        recipe: an ordinary recipe: a train step per task, and per pair where pairs are trained together.
        step: the train step whose settings they have, and its name in the user's recipe.
        alone: the step that trains a task, by task.
        together: the step that trains a pair, by pair.
        length: of every training of one task, in words.
    """

    recipe: Recipe
    name: str
    step: TrainStep
    alone: Mapping[str, str]
    together: Mapping[Pair, str]
    length: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Every task that is scored: the trained ones first."""
        return (*self.alone, *(task for task in self.recipe.tasks if task not in self.alone))


def transfer_plan(
    path: Path, overrides: Sequence[str] = (), *, step: str | None = None, tasks: Sequence[str] = (), together: bool
) -> TransferPlan:
    """Return the recipe with a train step per task, and what its steps are.

    Args:
        path, overrides: the recipe, as for `load_recipe`.
        step: its train step; None where there is one alone.
        tasks: those that train; none: those of the step. All others of the recipe are scored only.
        together: whether every pair is trained together too, for twice the length.

    Raises:
        MultituneError: fewer than two tasks, unknown ones, ones without rows to score; no train step, several, one of
            an estimator or one that starts from another model; an encoder; whatever is wrong with the recipe.
    """
    recipe = load_recipe(path, overrides)
    name, found = _train_step(recipe, step)
    chosen = _trained_tasks(recipe, name, found, tasks)
    _refuse_unscored(recipe)
    _refuse_encoder(recipe)
    training, length = _same_length(recipe, found, chosen)
    alone = _step_names({(task,): f"on-{task}" for task in chosen})
    pairs = _step_names({pair: "pair-" + "-".join(pair) for pair in combinations(chosen, 2)} if together else {})
    steps = {one: _only(found, training, group) for group, one in alone.items()}
    steps |= {one: _only(found, _doubled(training), group) for group, one in pairs.items()}
    generated = recipe.model_copy(update={"steps": steps, "score": recipe.score or ScoreConfig()})
    return TransferPlan(
        recipe=generated,
        name=name,
        step=found,
        alone={group[0]: one for group, one in alone.items()},
        together={(group[0], group[1]): one for group, one in pairs.items()},
        length=length,
    )


def steps_of_groups(plan: TransferPlan, groups: Sequence[Sequence[str]]) -> str:
    """Return YAML for a recipe: one train step per group, with the settings of the user's own step."""
    names = _step_names(
        {tuple(group): f"alone-{group[0]}" if len(group) == 1 else "-".join(group)[:40] for group in groups}
    )
    steps = {one: {"tasks": list(group), **_settings(plan.step, group)} for group, one in names.items()}
    return yaml.safe_dump({"steps": steps}, sort_keys=False, allow_unicode=True)


def _settings(step: TrainStep, tasks: tuple[str, ...]) -> dict[str, object]:
    """Return what a step says beside its tasks, for some of them; a mixture that names tasks is left out."""
    settings = _only(step, step.training, tasks).model_dump(mode="json", exclude_defaults=True)
    kept = {key: value for key, value in settings.items() if key not in ("tasks", "mixture")}
    if "adapt" in kept:
        kept["adapt"] = {"method": step.adapt.method, **kept["adapt"]}
    if len(tasks) > 1 and step.mixture.policy in UNNAMED:
        kept["mixture"] = step.mixture.model_dump(mode="json")
    return kept


def _train_step(recipe: Recipe, wanted: str | None) -> tuple[str, TrainStep]:
    """Return the train step whose settings every task gets."""
    trains = dict(recipe.train_steps())
    if wanted is not None and wanted not in recipe.steps:
        raise MultituneError(
            f"There is no step '{wanted}'.{nearest(wanted, recipe.steps)}",
            "--step",
            f"Use one of: {', '.join(trains) or 'none, as no step trains a model'}.",
        )
    if wanted is None and (len(recipe.steps) != 1 or len(trains) != 1):
        listed = ", ".join(f"{name} ({_kind(step)})" for name, step in recipe.steps.items())
        raise MultituneError(
            f"Transfer is measured with one train step, and the recipe's steps are: {listed}.",
            "steps",
            "Name the train step whose settings every task gets with --step, or leave that one alone in the recipe.",
        )
    name = wanted or next(iter(trains))
    if name not in trains:
        raise MultituneError(
            f"The step '{name}' is no training of a model: it is {_kind(recipe.steps[name])}.",
            "--step",
            "Name a step with do: train and no estimator.",
        )
    if trains[name].model != BASE:
        raise MultituneError(
            f"The step '{name}' starts from '{trains[name].model}', and gains are measured over the base model.",
            f"steps.{name}.model",
            "Let it start from base, or give the other model as the recipe's own.",
        )
    return name, trains[name]


def _kind(step: object) -> str:
    if isinstance(step, EstimatorStep):
        return f"estimator: {step.estimator}"
    return f"do: {getattr(step, 'do', '')}"


def _trained_tasks(recipe: Recipe, name: str, step: TrainStep, wanted: Sequence[str]) -> tuple[str, ...]:
    for task in wanted:
        if task not in recipe.tasks:
            raise MultituneError(
                f"There is no task '{task}'.{nearest(task, recipe.tasks)}",
                "--task",
                f"Use some of: {', '.join(recipe.training_tasks)}.",
            )
        if task not in recipe.training_tasks:
            raise MultituneError(
                f"The task '{task}' is held out, and cannot be trained on.", "--task", "It is scored anyway."
            )
    chosen = tuple(dict.fromkeys(wanted)) or (step.tasks if isinstance(step.tasks, tuple) else recipe.training_tasks)
    if len(chosen) < 2:
        raise MultituneError(
            f"Transfer is between tasks, and there is {len(chosen)} that trains: {', '.join(chosen) or 'none'}.",
            "--task" if wanted else f"steps.{name}.tasks",
            "Give the recipe two tasks or more with a train source.",
        )
    return chosen


def _refuse_unscored(recipe: Recipe) -> None:
    split = (recipe.score or ScoreConfig()).split
    unscored = [name for name, task in recipe.tasks.items() if scored_split(task, split) is None]
    if unscored:
        raise MultituneError(
            f"There are no rows to score {', '.join(unscored)} on.",
            f"tasks.{unscored[0]}",
            "Give every task a test or validation source, for example test: {fraction: 0.2}.",
        )


def _refuse_encoder(recipe: Recipe) -> None:
    from multitune.models.pretrained import model_form

    if model_form(recipe.base) == "encoder":
        raise MultituneError(
            "An encoder has one head per task: what one task trains cannot answer another.",
            "model",
            "Take a causal or encoder-decoder model.",
        )


def _same_length(recipe: Recipe, step: TrainStep, tasks: Sequence[str]) -> tuple[TrainingConfig, str]:
    """Return the step's training with a length that is the same for every task, and that length in words.

    Steps and examples are the same for all anyway; epochs become as many examples as they are for the smallest task.
    """
    training = step.training
    if training.steps is not None:
        return training, f"{training.steps:,} optimiser steps of {training.batch_size} rows"
    if training.examples is not None:
        return training, f"{training.examples:,} examples"
    epochs = training.epochs or 1.0
    rows = {task: _rows(recipe, task) for task in tasks}
    smallest = min(rows, key=lambda task: rows[task])
    examples = max(1, round(epochs * rows[smallest]))
    length = f"{examples:,} examples, {epochs:g} epochs of the smallest task, {smallest}"
    return training.model_copy(update={"epochs": None, "examples": examples}), length


def _rows(recipe: Recipe, name: str) -> int:
    """Return how many usable training rows a task has, by reading them."""
    from multitune.tasks.bad_rows import BadRows
    from multitune.tasks.prompting import prompted_examples, resolve

    task = resolve(recipe.tasks[name], recipe.folder)
    return sum(1 for _ in prompted_examples(task, "train", recipe.folder, templates="rotate", bad_rows=BadRows()))


def _doubled(training: TrainingConfig) -> TrainingConfig:
    """Return a training of twice the length: each of two tasks is then seen as often as alone."""
    longer = {"steps": training.steps, "examples": training.examples}
    return training.model_copy(update={key: 2 * value for key, value in longer.items() if value is not None})


def _only(step: TrainStep, training: TrainingConfig, tasks: tuple[str, ...]) -> TrainStep:
    """Return a step that trains some tasks alone, equally often, without what its settings say of others."""
    changes: dict[str, object] = {
        "task_weights": {task: weight for task, weight in training.task_weights.items() if task in tasks}
    }
    if training.focal is not None:
        alpha = {task: value for task, value in training.focal.alpha.items() if task in tasks}
        changes["focal"] = training.focal.model_copy(update={"alpha": alpha})
    if len(tasks) == 1 or (getattr(training.balancer, "earlier", None) or set()) - set(tasks):
        changes["balancer"] = None  # it needs tasks that are not here
    return step.model_copy(
        update={"tasks": tasks, "mixture": Equal(policy="equal"), "training": training.model_copy(update=changes)}
    )


def _step_names(wanted: Mapping[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
    """Return names that steps may have, each once."""
    names: dict[tuple[str, ...], str] = {}
    for group, name in wanted.items():
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        number, free = 1, plain
        while free in names.values() or free == BASE:
            number += 1
            free = f"{plain}_{number}"
        names[group] = free
    return names
