"""The recipe that measures transfer: the train step of another recipe, once per task with the same settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import yaml

from multitune.recipes.loading import load_recipe
from multitune.recipes.repeated_step import (
    on_tasks_only,
    refuse_encoder,
    refuse_unscored,
    step_names,
    train_step_of,
    trained_tasks,
    training_rows,
)
from multitune.recipes.schema import Recipe, TrainStep
from multitune.scoring.score import ScoreConfig
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
    name, found = train_step_of(recipe, step)
    chosen = trained_tasks(recipe, name, found, tasks)
    refuse_unscored(recipe)
    refuse_encoder(recipe)
    training, length = _same_length(recipe, found, chosen)
    alone = step_names({(task,): f"on-{task}" for task in chosen})
    pairs = step_names({pair: "pair-" + "-".join(pair) for pair in combinations(chosen, 2)} if together else {})
    steps = {one: on_tasks_only(found, training, group) for group, one in alone.items()}
    steps |= {one: on_tasks_only(found, _doubled(training), group) for group, one in pairs.items()}
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
    names = step_names(
        {tuple(group): f"alone-{group[0]}" if len(group) == 1 else "-".join(group)[:40] for group in groups}
    )
    steps = {one: {"tasks": list(group), **_settings(plan.step, group)} for group, one in names.items()}
    return yaml.safe_dump({"steps": steps}, sort_keys=False, allow_unicode=True)


def _settings(step: TrainStep, tasks: tuple[str, ...]) -> dict[str, object]:
    """Return what a step says beside its tasks, for some of them; a mixture that names tasks is left out."""
    settings = on_tasks_only(step, step.training, tasks).model_dump(mode="json", exclude_defaults=True)
    kept = {key: value for key, value in settings.items() if key not in ("tasks", "mixture")}
    if "adapt" in kept:
        kept["adapt"] = {"method": step.adapt.method, **kept["adapt"]}
    if len(tasks) > 1 and step.mixture.policy in UNNAMED:
        kept["mixture"] = step.mixture.model_dump(mode="json")
    return kept


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
    rows = {task: training_rows(recipe, task) for task in tasks}
    smallest = min(rows, key=lambda task: rows[task])
    examples = max(1, round(epochs * rows[smallest]))
    length = f"{examples:,} examples, {epochs:g} epochs of the smallest task, {smallest}"
    return training.model_copy(update={"epochs": None, "examples": examples}), length


def _doubled(training: TrainingConfig) -> TrainingConfig:
    """Return a training of twice the length: each of two tasks is then seen as often as alone."""
    longer = {"steps": training.steps, "examples": training.examples}
    return training.model_copy(update={key: 2 * value for key, value in longer.items() if value is not None})
