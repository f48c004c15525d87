"""What the keys of a step with an estimator say of one another and of the rest of the recipe."""

from __future__ import annotations

from collections.abc import Iterator

from multitune.errors import MultituneError
from multitune.recipes.reading import Document, KeyPath
from multitune.recipes.schema import EstimatorStep, Recipe, ScoreStep
from multitune.tabular.task_model import check_options
from multitune.tabular.task_table import table_task_mistakes, target_column


def check_model_is_there(recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    """Yield that the model is missing where a step, or the absence of steps, needs one."""
    if recipe.model is None and not _estimators_alone(recipe):
        yield MultituneError(
            "The key 'model' is missing.", document.where(()), "Add model; only recipes of estimators do without one."
        )


def _estimators_alone(recipe: Recipe) -> bool:
    return all(isinstance(step, EstimatorStep | ScoreStep) for step in recipe.steps.values())


def check_table_tasks(recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    """Yield what is wrong with the tasks that estimators learn, or that nothing else can answer; each once."""
    learned = set(recipe.tasks) if recipe.model is None and _estimators_alone(recipe) else set()
    for step in recipe.steps.values():
        if isinstance(step, EstimatorStep):
            learned.update(step.tasks if isinstance(step.tasks, tuple) else recipe.training_tasks)
    for name, task in recipe.tasks.items():
        for error in table_task_mistakes(task) if name in learned else ():
            yield MultituneError(
                error.what, document.where(("tasks", name, error.where.rpartition(".")[2])), error.mend
            )


def check_estimator(name: str, step: EstimatorStep, recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    """Yield every mistake of a step with an estimator that can be found without its rows.

    Args:
        name: of the step.
        step: valid by itself, key by key.
        recipe: that it is a step of.
        document: the file, for lines.
    """
    key: KeyPath = ("steps", name)
    named = step.tasks if isinstance(step.tasks, tuple) else recipe.training_tasks
    tasks = [recipe.tasks[task] for task in named if task in recipe.tasks]
    targets = [target_column(task) for task in tasks if not list(table_task_mistakes(task))]
    for place, feature in enumerate(step.features or ()):
        if feature in targets:
            what = f"The column '{feature}' is a target of this step."
        elif feature in (step.features or ())[:place]:
            what = f"The column '{feature}' is named twice."
        else:
            continue
        yield MultituneError(what, document.where((*key, "features", place)), "Take it out.")
    yield from _about_options(step, len(tasks), targets, document, (*key, "estimator_options"))


def _about_options(
    step: EstimatorStep, tasks: int, targets: list[str], document: Document, key: KeyPath
) -> Iterator[MultituneError]:
    try:
        for error in check_options(step.estimator, step.estimator_options):
            yield MultituneError(error.what, document.where((*key, error.where)), error.mend)
    except MultituneError as error:  # a package is not installed
        yield MultituneError(error.what, document.where((*key[:-1], "estimator")), error.mend)
    by = step.estimator_options.get("task_column")
    if step.estimator != "rmtgb" or by is None:
        return
    where = document.where((*key, "task_column"))
    if not isinstance(by, str):
        yield MultituneError(f"task_column is {by!r}, and columns have names here.", where, "Name the column.")
    elif by in targets:
        yield MultituneError(f"The column '{by}' is a target of this step.", where, "Name the column of the tasks.")
    elif tasks > 1 and step.tasks != "each":
        yield MultituneError(
            f"The tasks are told by the column '{by}' and by the recipe, which has {tasks} in this step.",
            where,
            "Take it out, or learn one task of the recipe in this step (tasks: [NAME], or each).",
        )
