"""The runs of a learning curve: tasks learned from 10, 100, ... rows, from several starting models, with several seeds.

    stage 1   the train steps of the recipe that a starting model comes from; they never see the target tasks
    stage 2   one train step of the recipe, on a target's first n rows (a budget), from every starting model
    0 rows    the starting model itself

Budgets are nested: the rows of a smaller one are the first of a larger one (arXiv:2306.05539).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitune.errors import MultituneError, nearest
from multitune.recipes.loading import load_recipe
from multitune.recipes.repeated_step import on_tasks_only, step_names, training_rows
from multitune.recipes.schema import BASE, Recipe, ScoreStep, Step, TrainStep
from multitune.recipes.sweep import Axis, Sweep, Value, Variant
from multitune.scoring.score import ScoreConfig, scored_split
from multitune.tasks.task import Task

NOTHING = "0"
"""The budget of the starting models themselves."""

TOGETHER = "together"
_BUDGET = re.compile(r"(?P<rows>[1-9]\d*)|(?P<share>\d+(\.\d+)?|\.\d+)%|(?P<all>all)")


@dataclass(frozen=True)
class Budget:
    """A number of training rows, or a share of them.

    Attributes:
        name: as given: "10", "6%" or "all".
        rows: of a number; share: of a share, in 0..1.
    """

    name: str
    rows: int | None = None
    share: float | None = None

    def of(self, rows: int) -> int:
        """Return the budget of a task with so many rows: at least one, at most all."""
        return min(rows, self.rows) if self.rows is not None else max(1, int((self.share or 0.0) * rows + 1e-9))


@dataclass(frozen=True)
class Curve:
    """What is drawn as one line: a starting model, and whether the targets are learned together or each alone."""

    start: str
    together: bool = False

    @property
    def label(self) -> str:
        """As in tables."""
        return f"{self.start}, {TOGETHER}" if self.together else self.start


@dataclass(frozen=True)
class LearningCurvePlan:
    """What `multitune learning-curve` runs.

    Attributes:
        sweep: variants by budget and seed; one without any stage 2 scores the starting models.
        name, step: the train step of stage 2.
        targets: the tasks that are learned, with their training rows.
        budgets: in rising order of the first target's rows.
        curves: in the order in which they are told; the first is what others are compared with.
        scored: the score step of (curve, target); zero: that of every starting model.
        seeds: of the trainings.
    """

    sweep: Sweep
    name: str
    step: TrainStep
    targets: Mapping[str, int]
    budgets: tuple[Budget, ...]
    curves: tuple[Curve, ...]
    scored: Mapping[tuple[Curve, str], str]
    zero: Mapping[str, str]
    seeds: tuple[int, ...]

    @property
    def trainings(self) -> int:
        """Trainings of stage 2."""
        each = sum(1 if curve.together else len(self.targets) for curve in self.curves)
        return each * len(self.budgets) * len(self.seeds)

    @property
    def notes(self) -> tuple[str, ...]:
        """Budgets that are larger than a task's rows."""
        short = [
            f"{task} has {rows:,} rows: of a budget of {budget.rows:,} it uses all it has."
            for task, rows in self.targets.items()
            for budget in self.budgets
            if budget.rows is not None and budget.rows > rows
        ]
        return tuple(short)


def budgets_of(text: str) -> tuple[Budget, ...]:
    """Return the budgets of a list such as "10,100,6%,all".

    Raises:
        MultituneError: a budget that is none, one below a row or above all of them, one that is listed twice.
    """
    found: dict[str, Budget] = {}
    for part in (one.strip() for one in text.split(",")):
        match = _BUDGET.fullmatch(part)
        share = float(match["share"]) if match and match["share"] else None
        if match is None or (share is not None and not 0 < share <= 100):
            raise MultituneError(
                f"'{part}' is no budget.",
                "--budgets",
                "List numbers of rows, shares up to 100%, or all: 10,100,6%,all.",
            )
        if part in found:
            raise MultituneError(f"The budget {part} is listed twice.", "--budgets", "Take one out.")
        rows = int(match["rows"]) if match["rows"] else None
        found[part] = Budget(part, rows, None if rows else (share or 100.0) / 100)
    return tuple(found.values())


def learning_curve_plan(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    tasks: Sequence[str],
    budgets: Sequence[Budget],
    step: str | None = None,
    starts: Sequence[str] = (),
    together: bool = False,
    seeds: int = 1,
) -> LearningCurvePlan:
    """Return the sweep of a learning curve; counts the training rows of the targets.

    Args:
        path, overrides: the recipe, as for `load_recipe`.
        tasks: the targets; held-out tasks may be targets, as long as they have training rows.
        budgets: how many of their rows are trained on.
        step: the train step of stage 2; None: the last one of the recipe.
        starts: the models that it starts from, base or train steps; none: base, and the step's own model.
        together: also one model for all targets, at every budget and from every start.
        seeds: from the recipe's own on.

    Raises:
        MultituneError: unknown tasks, steps or starts, a target without rows to train or to score on, a stage 1 that
            trains on a target, whatever is wrong with the recipe.
    """
    recipe = load_recipe(path, overrides)
    name, stage_2 = _stage_2(recipe, step)
    models = tuple(dict.fromkeys(starts or (BASE, stage_2.model)))
    _refuse_targets(recipe, tasks)
    stage_1 = _stage_1(recipe, name, models, tasks)
    rows = {task: training_rows(recipe, task) for task in tasks}
    curves = tuple(Curve(model, both) for both in ((False, True) if together else (False,)) for model in models)
    names = step_names({(curve.label, task): f"{curve.label}-{task}" for curve in curves for task in tasks})
    scored = {(curve, task): f"score-{names[curve.label, task]}" for curve in curves for task in tasks}
    zero = {model: f"score-{model.replace('.', '_')}" for model in models}
    score = recipe.score or ScoreConfig()
    learned: dict[str, Step] = dict(stage_1)
    for curve in curves:
        groups = [tuple(tasks)] if curve.together else [(task,) for task in tasks]
        for group in groups:
            node = names[curve.label, group[0]]
            one = on_tasks_only(stage_2, stage_2.training, group)
            learned[node] = one.model_copy(update={"model": curve.start, "mixture": stage_2.mixture})
            learned |= {scored[curve, task]: _score_step(score, node, (task,)) for task in group}
    at_zero: dict[str, Step] = dict(stage_1)
    at_zero |= {node: _score_step(score, model, tuple(tasks)) for model, node in zero.items()}
    own = tuple(range(recipe.seed, recipe.seed + seeds))
    return LearningCurvePlan(
        sweep=_sweep(recipe, rows, budgets, own, learned, at_zero),
        name=name,
        step=stage_2,
        targets=rows,
        budgets=tuple(sorted(budgets, key=lambda budget: budget.of(rows[tasks[0]]))),
        curves=curves,
        scored=scored,
        zero=zero,
        seeds=own,
    )


def _stage_2(recipe: Recipe, wanted: str | None) -> tuple[str, TrainStep]:
    trains = dict(recipe.train_steps())
    if not trains or (wanted is not None and wanted not in trains):
        what = f"There is no train step '{wanted}'.{nearest(wanted, trains)}" if wanted else "No step trains a model."
        raise MultituneError(what, "--step", f"Use one of: {', '.join(trains) or 'none'}.")
    name = wanted or list(trains)[-1]
    return name, trains[name]


def _refuse_targets(recipe: Recipe, tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in recipe.tasks:
            raise MultituneError(
                f"There is no task '{task}'.{nearest(task, recipe.tasks)}",
                "--task",
                f"Use some of: {', '.join(recipe.tasks)}.",
            )
        found = recipe.tasks[task]
        split = (recipe.score or ScoreConfig()).split
        if found.train is None or scored_split(found, split) is None:
            lacking = "train" if found.train is None else split
            raise MultituneError(f"'{task}' has no {lacking} rows.", f"tasks.{task}", f"Give it a {lacking} source.")
        for cut in ("validation", "test"):
            source = found.source(cut)
            if source is not None and source.fraction is not None:
                raise MultituneError(
                    f"'{task}' cuts its {cut} rows from its training rows, and a budget would change them.",
                    f"tasks.{task}.{cut}",
                    "Give it a source of its own for a target.",
                )


def _stage_1(recipe: Recipe, stage_2: str, models: Sequence[str], targets: Sequence[str]) -> dict[str, TrainStep]:
    """Return the train steps that the starting models come from, their tasks by name, without the targets."""
    found: dict[str, TrainStep] = {}
    waiting = [model for model in models if model != BASE]
    while waiting:
        model = waiting.pop()
        step = recipe.steps.get(model)
        if not isinstance(step, TrainStep) or model == stage_2 or step.tasks == "each":
            others = [name for name, _ in recipe.train_steps() if name != stage_2]
            raise MultituneError(
                f"'{model}' is no model to start from.{nearest(model, others)}",
                "--from",
                f"Use base or a train step of one model: {', '.join(others) or 'there is none'}.",
            )
        named = step.tasks if isinstance(step.tasks, tuple) else recipe.training_tasks
        if isinstance(step.tasks, tuple) and (known := set(named) & set(targets)):
            raise MultituneError(
                f"The starting model '{model}' was trained on the target '{min(known)}'.",
                f"steps.{model}.tasks",
                "Take the target out of the step, or name another target.",
            )
        found[model] = step.model_copy(update={"tasks": tuple(task for task in named if task not in targets)})
        if step.model != BASE:
            waiting.append(step.model)
    return {name: found[name] for name in recipe.steps if name in found}


def _score_step(score: ScoreConfig, model: str, tasks: tuple[str, ...]) -> ScoreStep:
    return ScoreStep(do="score", model=model, tasks=tasks, **score.model_dump(exclude_unset=True))


def _sweep(
    recipe: Recipe,
    targets: Mapping[str, int],
    budgets: Sequence[Budget],
    seeds: Sequence[int],
    learned: Mapping[str, Step],
    at_zero: Mapping[str, Step],
) -> Sweep:
    """Return a variant per budget and seed, and one per seed that scores the starting models."""
    values = tuple(Value(budget.name, budget.name, "") for budget in (Budget(NOTHING), *budgets))
    axes = (Axis("budget", "budget", values), Axis("seed", "seed", tuple(Value(str(one), one, "") for one in seeds)))
    variants = []
    for seed in seeds:
        common = {"seed": seed, "score": False}
        tasks = recipe.tasks | {task: _trained(recipe.tasks[task], None) for task in targets}
        start = recipe.model_copy(update={**common, "tasks": tasks, "steps": dict(at_zero)})
        variants.append(Variant(variant_name(NOTHING, seed), {"budget": NOTHING, "seed": str(seed)}, start))
        for budget in budgets:
            fewer = {task: _trained(recipe.tasks[task], budget.of(rows)) for task, rows in targets.items()}
            one = recipe.model_copy(update={**common, "tasks": recipe.tasks | fewer, "steps": dict(learned)})
            values_of = {"budget": budget.name, "seed": str(seed)}
            variants.append(Variant(variant_name(budget.name, seed), values_of, one))
    return Sweep(recipe.name, axes, tuple(variants))


def _trained(task: Task, rows: int | None) -> Task:
    """Return a target that may be trained on, with its first rows alone; None: all."""
    train = task.train
    if rows is not None and train is not None:
        train = train.model_copy(update={"rows": rows})
    return task.model_copy(update={"held_out": False, "train": train})


def variant_name(budget: str, seed: int) -> str:
    """Return the name of the variant, and of its folder."""
    return f"budget={budget.replace('%', 'percent')},seed={seed}"
