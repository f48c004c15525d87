"""What the estimators of a recipe will learn from: their rows and columns, read but not learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.graph import EstimatorNode, build
from multitune.recipes.schema import Recipe
from multitune.recipes.tables import TrainingTable, read_training_table
from multitune.tabular.task_table import as_table_task, target_column
from multitune.tasks.overlap import overlap_warnings
from multitune.tasks.task import Prompted, Task


@dataclass(frozen=True)
class TaskInTable:
    """What one estimator learns of one task.

    Attributes:
        target: the column of its answers.
        rows: training rows.
        answers: "8 classes", or the range of its numbers.
    """

    task: str
    target: str
    rows: int
    answers: str


@dataclass(frozen=True)
class TableNodePlan:
    """What one estimator node will learn from.

    Attributes:
        name, estimator: the node, and what it fits.
        numeric, categorical: columns of numbers and of words that it learns from.
        tasks: of the recipe.
        groups: tasks that the column of tasks tells apart; 0 where the recipe's tasks are the estimator's.
        warnings: what deserves a second look.
    """

    name: str
    estimator: str
    numeric: list[str]
    categorical: list[str]
    tasks: list[TaskInTable]
    groups: int
    warnings: list[str]


def plan_tables(recipe: Recipe) -> list[TableNodePlan]:
    """Return the plans of a recipe's estimators.

    Raises:
        MultituneError: rows or columns that cannot be learned from; of all nodes at once.
    """
    return plan_table_nodes((node.name, node, recipe) for node in build(recipe) if isinstance(node, EstimatorNode))


def plan_table_nodes(nodes: Iterable[tuple[str, EstimatorNode, Recipe]]) -> list[TableNodePlan]:
    """Return the plans of estimator nodes, each with its name in the plan and its recipe; raises as `plan_tables`."""
    plans: list[TableNodePlan] = []
    errors: dict[tuple[str, str], MultituneError] = {}
    for label, node, recipe in nodes:
        try:
            plans.append(_plan(label, node, recipe, _resolved(node, recipe)))
        except MultituneError as error:
            each = error.errors if isinstance(error, MultituneErrors) else [error]
            errors |= {(one.what, one.where): one for one in each}
    if errors:
        raise MultituneErrors(errors.values())
    return plans


def _resolved(node: EstimatorNode, recipe: Recipe) -> list[Task]:
    from multitune.tasks.prompting import resolve

    tasks, errors = [], []
    for name in node.tasks:
        try:
            tasks.append(resolve(as_table_task(recipe.tasks[name]), recipe.folder))
        except MultituneError as error:
            errors.append(error)
    if errors:
        raise MultituneErrors(errors)
    return tasks


def _plan(label: str, node: EstimatorNode, recipe: Recipe, tasks: list[Task]) -> TableNodePlan:
    table = read_training_table(node, recipe, tasks)
    by = node.step.estimator_options.get("task_column")
    groups: Counter[str] = Counter()
    if by is not None:
        groups.update(str(row.example.fields.get(by)) for own in table.rows.values() for row in own)
    warnings = [warning for task in tasks for warning in overlap_warnings(task, recipe.folder)]
    lonely = [name for name, rows in (groups or _rows_of(table)).items() if rows == 1]
    if lonely and node.step.estimator == "rmtgb":
        warnings.append(f"{len(lonely)} tasks have a single training row: {', '.join(lonely[:5])}.")
    return TableNodePlan(
        name=label,
        estimator=node.step.estimator,
        numeric=[column.name for column in table.columns if column.numeric],
        categorical=[column.name for column in table.columns if not column.numeric and column.name != by],
        tasks=[
            TaskInTable(task.name, target_column(task), len(table.rows[task.name]), _told(task, table.rows[task.name]))
            for task in tasks
        ],
        groups=len(groups),
        warnings=warnings,
    )


def _rows_of(table: TrainingTable) -> Mapping[str, int]:
    return {name: len(rows) for name, rows in table.rows.items()}


def _told(task: Task, rows: Iterable[Prompted]) -> str:
    if task.kind == "label":
        counts = Counter(row.target for row in rows)
        shown = ", ".join(f"{text} {counts[text]:,}" for text in task.choice_texts[:5])
        return f"{len(task.choice_texts)} classes: {shown}{' ...' * (len(task.choice_texts) > 5)}"
    values = [row.value for row in rows if row.value is not None]
    return f"{min(values):g} to {max(values):g}, mean {sum(values) / len(values):.4g}"
