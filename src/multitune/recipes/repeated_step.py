"""One train step of a recipe, repeated with other tasks: what transfer, cocktails and learning curves are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from multitune.errors import MultituneError, nearest
from multitune.mixing.policies import Equal
from multitune.recipes.schema import BASE, EstimatorStep, Recipe, TrainStep
from multitune.scoring.score import ScoreConfig, scored_split
from multitune.training.config import TrainingConfig


def train_step_of(recipe: Recipe, wanted: str | None) -> tuple[str, TrainStep]:
    """Return the train step that is repeated, and its name: the wanted one, else the only one.

    Raises:
        MultituneError: no such step, several, one of an estimator, or one that starts from another model.
    """
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
            f"One train step is repeated, and the recipe's steps are: {listed}.",
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


def trained_tasks(recipe: Recipe, name: str, step: TrainStep, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks that train: the wanted ones, else those of the step; at least two, none held out."""
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
            f"Two tasks or more are compared, and there is {len(chosen)} that trains: {', '.join(chosen) or 'none'}.",
            "--task" if wanted else f"steps.{name}.tasks",
            "Give the recipe two tasks or more with a train source.",
        )
    return chosen


def refuse_unscored(recipe: Recipe) -> None:
    """Refuse tasks without rows to score."""
    split = (recipe.score or ScoreConfig()).split
    unscored = [name for name, task in recipe.tasks.items() if scored_split(task, split) is None]
    if unscored:
        raise MultituneError(
            f"There are no rows to score {', '.join(unscored)} on.",
            f"tasks.{unscored[0]}",
            "Give every task a test or validation source, for example test: {fraction: 0.2}.",
        )


def refuse_encoder(recipe: Recipe) -> None:
    """Refuse a model with a head per task."""
    from multitune.models.pretrained import model_form

    if model_form(recipe.base) == "encoder":
        raise MultituneError(
            "An encoder has one head per task: what one task trains cannot answer another.",
            "model",
            "Take a causal or encoder-decoder model.",
        )


def training_rows(recipe: Recipe, name: str) -> int:
    """Return how many usable training rows a task has, by reading them."""
    from multitune.tasks.bad_rows import BadRows
    from multitune.tasks.prompting import prompted_examples, resolve

    task = resolve(recipe.tasks[name], recipe.folder)
    return sum(1 for _ in prompted_examples(task, "train", recipe.folder, templates="rotate", bad_rows=BadRows()))


def on_tasks_only(step: TrainStep, training: TrainingConfig, tasks: tuple[str, ...]) -> TrainStep:
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


def step_names(wanted: Mapping[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
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


def _kind(step: object) -> str:
    if isinstance(step, EstimatorStep):
        return f"estimator: {step.estimator}"
    return f"do: {getattr(step, 'do', '')}"
