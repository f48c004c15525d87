"""What a learning curve says: scores by budget, how many examples reach a score, a page and the answer as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from multitune import __version__
from multitune.recipes.learning_curve import NOTHING, Budget, Curve, LearningCurvePlan, variant_name
from multitune.recipes.run_folder import write_whole
from multitune.reporting.charts import Panel, Series, Tick, line_panel
from multitune.reporting.comparison import higher_is_better, main_metric
from multitune.reporting.intervals import interval_of_task_mean
from multitune.reporting.report import environment
from multitune.reporting.row_scores import Scored, aligned_rows, task_value
from multitune.reporting.run_folder import Run, read_run
from multitune.scoring.sample_efficiency import Needed, examples_to_reach, needed_over_tasks

WIDTH, HEIGHT = 640.0, 300.0


@dataclass(frozen=True)
class Point:
    """One budget of one curve.

    Attributes:
        budget: its name, "0" for the starting model.
        rows: of every target; by_task: their scores, means over seeds.
        value: mean over the targets; low, high: its 95 % interval over seeds and rows.
    """

    budget: str
    rows: Mapping[str, int]
    by_task: Mapping[str, float]
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Learned:
    """One curve.

    Attributes:
        label: the starting model, and whether the targets were learned together.
        points: by rising budget, the starting model first.
        needed: examples of a task at which the mean curve reaches the mean of what is asked for, with an interval over
            targets; by_task: of every target, None where no budget reaches it.
    """

    label: str
    points: tuple[Point, ...]
    needed: Needed
    by_task: Mapping[str, float | None]


@dataclass(frozen=True)
class LearningCurves:
    """All curves of a run; ``reach`` is the score asked for, by target, ``told`` what that is in words."""

    metrics: Mapping[str, str]
    reach: Mapping[str, float]
    told: str
    curves: tuple[Learned, ...]


def read_learning_curves(plan: LearningCurvePlan, folder: Path, *, reach: float | None = None) -> LearningCurves:
    """Return the curves of a finished run.

    Args:
        plan: that was run.
        folder: of the sweep.
        reach: the score asked for; None: what each target's first curve has with its largest budget.

    Raises:
        MultituneError: a score is missing or is no number.
    """
    names = {variant.name for variant in plan.sweep.variants}
    runs = {name: read_run(folder / "variants" / name) for name in sorted(names)}
    metrics = {task: main_metric(runs[variant_name(NOTHING, plan.seeds[0])], task)[0] for task in plan.targets}
    points = {curve: tuple(_points(plan, runs, metrics, curve)) for curve in plan.curves}
    full = points[plan.curves[0]][-1]
    asked = {task: full.by_task[task] if reach is None else reach for task in plan.targets}
    told = f"what {plan.curves[0].label} reaches with {full.budget}" if reach is None else f"{reach:g}"
    return LearningCurves(
        metrics=metrics,
        reach=asked,
        told=told,
        curves=tuple(_learned(curve.label, points[curve], asked, metrics) for curve in plan.curves),
    )


def _points(plan: LearningCurvePlan, runs: Mapping[str, Run], metrics: Mapping[str, str], curve: Curve) -> list[Point]:
    signs = {task: 1.0 if higher_is_better(metric) else -1.0 for task, metric in metrics.items()}
    points = []
    for budget in (Budget(NOTHING), *plan.budgets):
        nothing = budget.name == NOTHING
        nodes = {task: plan.zero[curve.start] if nothing else plan.scored[curve, task] for task in plan.targets}
        groups: dict[str, list[Scored]] = {
            task: [(runs[variant_name(budget.name, seed)], node) for seed in plan.seeds] for task, node in nodes.items()
        }
        by_task = {task: fmean(task_value(one, task) for one in group) for task, group in groups.items()}
        rows = [signs[task] * aligned_rows([group], task)[0] for task, group in groups.items()]
        low, high = interval_of_task_mean(rows)
        counts = {task: 0 if nothing else budget.of(n) for task, n in plan.targets.items()}
        points.append(Point(budget.name, counts, by_task, fmean(by_task.values()), low, high))
    return points


def _learned(label: str, points: Sequence[Point], asked: Mapping[str, float], metrics: Mapping[str, str]) -> Learned:
    trained = points[1:]
    signs = {task: 1.0 if higher_is_better(metric) else -1.0 for task, metric in metrics.items()}
    by_task = {}
    for task, sign in signs.items():
        by_rows: dict[int, float] = {}
        for point in trained:  # tasks with fewer rows than a budget have the same rows at the next one
            by_rows.setdefault(point.rows[task], sign * point.by_task[task])
        by_task[task] = examples_to_reach(sign * asked[task], [*by_rows], [*by_rows.values()])
    means: dict[float, list[float]] = {}
    for point in trained:
        scores = [sign * point.by_task[task] for task, sign in signs.items()]
        means.setdefault(fmean(point.rows.values()), scores)
    wanted = fmean(sign * asked[task] for task, sign in signs.items())
    score_TB = np.array(list(means.values())).T
    return Learned(label, tuple(points), needed_over_tasks(wanted, list(means), score_TB), by_task)


def answer(plan: LearningCurvePlan, found: LearningCurves) -> dict[str, Any]:
    """Return the curves as a program wants them."""
    return {
        "targets": dict(plan.targets),
        "seeds": plan.seeds,
        "metrics": dict(found.metrics),
        "reach": dict(found.reach),
        "told": found.told,
        "curves": [asdict(one) | {"needed": one.needed._asdict()} for one in found.curves],
        "sentences": sentences(found),
        "notes": plan.notes,
    }


def sentences(found: LearningCurves) -> list[str]:
    """Return how many examples every curve needs, one sentence each."""
    return [f"{one.label}: {needed_text(one.needed)} to reach {found.told}." for one in found.curves]


def needed_text(needed: Needed) -> str:
    """Return a number of examples with its interval."""
    if needed.examples is None:
        return "more examples than the largest budget"
    if needed.low is None or needed.high is None:
        bounds = f"{'?' if needed.low is None else round(needed.low)} to more than the largest budget"
    else:
        bounds = f"{round(needed.low):,} to {round(needed.high):,}"
    return f"{round(needed.examples):,} examples a task ({bounds})"


def drawn(found: LearningCurves) -> Panel:
    """Return the mean curves as a chart; budgets stand at even distances."""
    budgets = [point.budget for point in found.curves[0].points]
    series = [
        Series(one.label, [(float(place), point.value) for place, point in enumerate(one.points)])
        for one in found.curves
    ]
    names = [one.label for one in found.curves]
    panel = line_panel("mean over the targets", series, names, width=WIDTH, height=HEIGHT, along="budgets")
    step = (panel.right - panel.left) / (len(budgets) - 1)
    return replace(panel, x_ticks=tuple(Tick(panel.left + i * step, name) for i, name in enumerate(budgets)))


def write_learning_curve_page(name: str, plan: LearningCurvePlan, found: LearningCurves, out: Path) -> Path:
    """Write the page about a run's curves and return its path."""
    smallest = min(point.low for one in found.curves for point in one.points)
    page = (
        environment()
        .get_template("learning_curve.html")
        .render(
            name=name,
            plan=plan,
            found=found,
            sentences=sentences(found),
            panel=drawn(found) if smallest >= 0 else None,
            version=__version__,
        )
    )
    write_whole(out, page)
    return out
