"""What a run does with tabular estimators: fits them into a node's folder and scores them as any other model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.graph import EstimatorNode
from multitune.recipes.schema import Recipe
from multitune.tabular.task_model import TableModel, fit_table_model
from multitune.tabular.task_table import (
    Column,
    answer_of,
    described,
    find_columns,
    read_rows,
    table_task_mistakes,
    target_column,
)
from multitune.tasks.task import Example, Prompted, Task

if TYPE_CHECKING:
    from multitune.scoring.score import ScoreConfig, TaskScore

logger = logging.getLogger("multitune.recipes")

THETA_PLOT = "theta.svg"


@dataclass(frozen=True)
class TrainingTable:
    """The training rows of an estimator node, by task, and the columns that it learns from."""

    tasks: tuple[Task, ...]
    rows: Mapping[str, Sequence[Prompted]]
    columns: tuple[Column, ...]


def read_training_table(node: EstimatorNode, recipe: Recipe, tasks: Sequence[Task]) -> TrainingTable:
    """Read what a node learns from.

    Args:
        node: the node.
        recipe: for the folder, and the targets of all its tasks: none is a feature unless the step names it.
        tasks: of the node, resolved.

    Raises:
        MultituneErrors: every task whose rows cannot be used; or what `find_columns` refuses.
    """
    rows, errors = {}, list(_of_several_kinds(node, tasks))
    for task in tasks:
        try:
            rows[task.name] = read_rows(task, "train", recipe.folder)
        except MultituneError as error:
            errors.append(error)
    if not errors:
        errors += _without_choice(node, tasks, rows)
    if errors:
        raise MultituneErrors(errors)
    options = node.step.estimator_options
    words = [str(name) for name in _listed(options.get("categorical_features", ()))]
    targets = {target_column(task) for task in recipe.tasks.values() if not list(table_task_mistakes(task))}
    features = node.step.features
    if (by := options.get("task_column")) is not None:
        words.append(str(by))
        targets.discard(str(by))
        features = (*features, str(by)) if features is not None and by not in features else features
    return TrainingTable(tuple(tasks), rows, find_columns(rows, features, targets, words))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _of_several_kinds(node: EstimatorNode, tasks: Sequence[Task]) -> Iterator[MultituneError]:
    kinds = {task.kind for task in tasks}
    if node.step.estimator == "rmtgb" and len(kinds) > 1:
        told = ", ".join(f"{task.name} is of kind {task.kind}" for task in tasks)
        yield MultituneError(
            f"rmtgb learns classes or numbers, not both at once: {told}.",
            f"steps.{node.name.partition('.')[0]}.tasks",
            "Make it two steps, or take estimator: multitab.",
        )


def _without_choice(
    node: EstimatorNode, tasks: Sequence[Task], rows: Mapping[str, Sequence[Prompted]]
) -> Iterator[MultituneError]:
    """Yield the tasks that leave nothing to tell apart: of rmtgb all together, of a network each."""
    labels = [task for task in tasks if task.kind == "label"]
    together = [labels] if node.step.estimator == "rmtgb" else [[task] for task in labels]
    for group in filter(None, together):
        found = {row.target for task in group for row in rows[task.name]}
        if len(found) < 2:
            names = ", ".join(task.name for task in group)
            yield MultituneError(
                f"All training rows of {names} are of one class, '{found.pop()}'.",
                f"tasks.{group[0].name}.train",
                "Give rows of two classes or more, or leave the task out of the step.",
            )


def fit_node(node: EstimatorNode, recipe: Recipe, tasks: Sequence[Task]) -> tuple[TableModel, dict[str, Any]]:
    """Fit a node's estimator and return it with the facts of its training."""
    table = read_training_table(node, recipe, tasks)
    options = node.step.estimator_options
    validation = None
    if options.get("early_stopping") is True and all(task.validation is not None for task in tasks):
        validation = {task.name: read_rows(task, "validation", recipe.folder) for task in tasks}
    rows = {task.name: len(table.rows[task.name]) for task in tasks}
    logger.info(
        "%s: fitting %s to %d rows of %d columns",
        node.name,
        node.step.estimator,
        sum(rows.values()),
        len(table.columns),
    )
    started = time.perf_counter()
    model = fit_table_model(
        node.step.estimator, options, tasks, table.rows, table.columns, seed=recipe.seed, validation=validation
    )
    facts = {
        "name": node.name,
        "estimator": node.step.estimator,
        "tasks": list(node.tasks),
        "seconds": round(time.perf_counter() - started, 2),
        "rows": rows,
        "features": [column.name for column in table.columns],
    }
    if node.step.estimator == "rmtgb":
        scores = sorted(
            zip(model.estimator.tasks_, model.estimator.outlier_score_, strict=True), key=lambda one: -one[1]
        )
        facts["outlier_scores"] = {str(task): round(float(score), 4) for task, score in scores}
    return model, facts


def save_node(model: TableModel, folder: Path) -> None:
    """Write a fitted estimator, and of many tasks in one booster the drawing of where each stands."""
    model.save(folder)
    if model.kind == "rmtgb" and len(model.estimator.tasks_) > 1:
        from multitune.tabular import plot_theta

        plot_theta(model.estimator, folder / THETA_PLOT)


@dataclass(frozen=True)
class Baseline:
    """What a recipe without a model is held against: the mean, or the most frequent class, of the training rows.

    Attributes:
        answers_of: the one answer of every task: a number, or the place of a choice.
    """

    answers_of: Mapping[str, float | int]
    columns: tuple[Column, ...] = ()

    def can_answer(self, task: Task) -> bool:
        """Whether there were training rows to learn from."""
        return task.name in self.answers_of

    def answers(self, task: Task, rows: Sequence[Example]) -> list[Any]:
        """Return the same answer for every row."""
        return [self.answers_of[task.name]] * len(rows)


def fit_baseline(tasks: Sequence[Task], folder: Path) -> Baseline:
    """Return the baseline of some tasks; a held-out one gets what all the others of its kind have together."""
    seen: dict[str, list[Any]] = {
        task.name: [answer_of(row) for row in read_rows(task, "train", folder)]
        for task in tasks
        if not task.held_out and task.train is not None
    }
    found: dict[str, float | int] = {}
    for task in tasks:
        others = [seen[other.name] for other in tasks if other.name in seen and other.kind == task.kind]
        answers = seen.get(task.name) or [answer for own in others for answer in own]
        if not answers:
            continue
        if task.kind == "regress":
            found[task.name] = sum(answers) / len(answers)
        else:
            choices = task.choice_texts
            found[task.name] = max(range(len(choices)), key=lambda place: answers.count(choices[place]))
    return Baseline(found)


def score_tables(
    model: TableModel | Baseline, tasks: Sequence[Task], folder: Path, config: ScoreConfig, *, seed: int
) -> list[TaskScore]:
    """Return the scores of an estimator, or of the baseline, on every task; as ``scoring.score.score_tasks``.

    Args:
        tasks: resolved, of those that it can answer.
        folder: what the tasks' paths are relative to.
        seed: of the intervals' resampling.
    """
    from multitune.scoring.score import Answers, measure, scored_rows

    if config.shots:
        raise MultituneError(
            "An estimator of tables reads no demonstrations.", f"shots: {config.shots}", "Set shots: 0 for it."
        )
    scores = []
    for task in tasks:
        split, rows = scored_rows(task, folder, config)
        answers = Answers(list(model.answers(task, [row.example for row in rows])))
        shown = [replace(row, prompt=row.prompt or described(row.example, model.columns)) for row in rows]
        scores.append(measure(task, split, shown, answers, seed))
    return scores


def that_it_answers(model: TableModel | Baseline, tasks: Sequence[Task]) -> list[Task]:
    """Keep the tasks that an estimator can answer, and say which ones it cannot."""
    if left_out := [task.name for task in tasks if not model.can_answer(task)]:
        logger.warning("the estimator has not learned %s: not scored", ", ".join(left_out))
    return [task for task in tasks if model.can_answer(task)]
