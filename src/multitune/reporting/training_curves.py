"""What the training logs say: loss per task over the steps, throughput, and what the mixture gave each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from multitune.reporting.charts import Panel, Series, line_panel, smoothed
from multitune.reporting.comparison import arm_of
from multitune.reporting.run_folder import Run

LogLine = dict[str, Any]
Point = TypeVar("Point")
Counted = tuple[float, float, float]  # step, value, and the number of labelled tokens that it is a mean over
Course = tuple[str, Sequence[Counted]]  # an arm's name and its values as logged
MEMORY = 2 / 3  # of the running mean over log lines: about three lines speak at once
MOST_POINTS = 240


@dataclass(frozen=True)
class Curves:
    """Charts of the loss: over all tasks, and one per task."""

    overall: Panel | None
    tasks: tuple[Panel, ...]


@dataclass(frozen=True)
class Speed:
    """How fast one arm trained, over all its log lines: sums of tokens over sums of seconds."""

    arm: str
    tokens_per_second: float
    labelled_tokens_per_second: float
    seconds: float
    steps: int


@dataclass(frozen=True)
class Portion:
    """What one task received in one training: shares are in [0, 1]; ``repeats`` counts how often its rows came by."""

    task: str
    examples: int
    examples_share: float
    tokens: int
    tokens_share: float
    weight_share: float
    repeats: float | None


@dataclass(frozen=True)
class MixtureTable:
    """The portions of every task in one node's training; ``most`` is the largest share, the full length of a bar."""

    node: str
    portions: tuple[Portion, ...]
    most: float


def loss_panels(runs: Sequence[Run]) -> Curves:
    """Return the loss charts of runs that differ by seed only: one line per arm and run; tasks as in the recipe."""
    overall: list[Course] = []
    by_task: dict[str, list[Course]] = {task: [] for task in runs[0].tasks}
    for run in runs:
        for node, lines in run.logs.items():
            arm = arm_of(run, node)
            if arm == node:
                overall += _course(arm, [(line["step"], line.get("loss"), 1.0) for line in lines])
            for task in dict.fromkeys(name for line in lines for name in line["tasks"]):
                told = [(line["step"], line["tasks"][task]) for line in lines if task in line["tasks"]]
                points = [(step, sums["loss"], float(sums["tokens"])) for step, sums in told]
                by_task.setdefault(task, []).extend(_course(arm, points))
    names = arm_names(runs)
    return Curves(
        overall=_panel("Loss over all tasks", overall, names, width=560, height=230) if overall else None,
        tasks=tuple(
            _panel(task, courses, names, width=264, height=150) for task, courses in by_task.items() if courses
        ),
    )


def validation_panels(run: Run) -> tuple[Panel, ...]:
    """Return a chart per training of one run: every task's validation loss as evaluated, against optimiser steps."""
    return tuple(
        _task_panel(node, run.tasks, [(line["step"], line["tasks"]) for line in lines])
        for node, lines in run.evaluations.items()
    )


def balance_panels(run: Run) -> tuple[Panel, ...]:
    """Return the charts of the balancers of one run: every task's weight over the steps, and the losses observed."""
    panels = []
    for node, lines in run.logs.items():
        for key, title in (("weights", "Task weights"), ("observed", "Losses that the balancer observed")):
            told = [(line["step"], line[key]) for line in lines if key in line]
            if told:
                panels.append(_task_panel(f"{title}: {node}", run.tasks, told))
    return tuple(panels)


def _task_panel(title: str, tasks: Sequence[str], lines: Sequence[tuple[int, Mapping[str, float]]]) -> Panel:
    """Return a chart with a line per task."""
    courses = [
        Series(task, thinned([(float(step), values[task]) for step, values in lines if values.get(task) is not None]))
        for task in tasks
        if any(values.get(task) is not None for _, values in lines)
    ]
    return line_panel(title, courses, [course.name for course in courses], width=560, height=230)


def _panel(title: str, courses: Sequence[Course], names: Sequence[str], *, width: float, height: float) -> Panel:
    """Return the chart of some courses; the values as logged stand faintly behind the only line of a name."""
    count = Counter(name for name, _ in courses)
    raw = [thinned(points) for name, points in courses if count[name] == 1]
    series = [Series(name, thinned(running_means(points))) for name, points in courses]
    return line_panel(
        title, series, names, width=width, height=height, raw=[[(x, y) for x, y, _ in points] for points in raw]
    )


def arm_names(runs: Sequence[Run]) -> list[str]:
    """Return the arms that trained, in the order of the recipe."""
    return list(dict.fromkeys(arm_of(run, node) for run in runs for node in run.logs))


def _course(name: str, points: Sequence[tuple[float, float | None, float]]) -> list[Course]:
    """Return the (step, value, count) points whose value is a number, under a name; [] when none is."""
    known = [(float(step), value, count) for step, value, count in points if value is not None and count > 0]
    return [(name, known)] if known else []


def running_means(points: Sequence[Counted]) -> list[tuple[float, float]]:
    """Return (step, running mean) points."""
    means = smoothed([value for _, value, _ in points], [count for _, _, count in points], memory=MEMORY)
    return [(step, mean) for (step, _, _), mean in zip(points, means, strict=True)]


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most about MOST_POINTS points, evenly spaced, the last one among them."""
    stride = max(1, len(points) // MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


@dataclass(frozen=True)
class Throughput:
    """The arms' speeds and, where one training logged twice or more, its course."""

    speeds: tuple[Speed, ...]
    panel: Panel | None


def throughput(runs: Sequence[Run]) -> Throughput:
    """Return how fast every arm trained; arms that train each task alone are added up over their tasks."""
    lines_of: dict[str, list[LogLine]] = {}
    steps_of: dict[str, int] = {}
    course: list[Series] = []
    for run in runs:
        for node, lines in run.logs.items():
            arm = arm_of(run, node)
            lines_of.setdefault(arm, []).extend(lines)
            steps_of[arm] = steps_of.get(arm, 0) + int(lines[-1]["step"])
            if arm == node and len(lines) > 1:
                course.append(Series(arm, [(line["step"], line["tokens_per_second"]) for line in lines]))
    speeds = tuple(_speed(arm, lines, steps_of[arm]) for arm, lines in lines_of.items())
    panel = line_panel("Tokens per second", course, arm_names(runs), width=560, height=230) if course else None
    return Throughput(speeds, panel)


def _speed(arm: str, lines: Sequence[LogLine], steps: int) -> Speed:
    seconds = sum(float(line["seconds"]) for line in lines)
    return Speed(
        arm=arm,
        tokens_per_second=sum(line["tokens_per_second"] * line["seconds"] for line in lines) / (seconds or 1.0),
        labelled_tokens_per_second=sum(line["labelled_tokens_per_second"] * line["seconds"] for line in lines)
        / (seconds or 1.0),
        seconds=seconds,
        steps=steps,
    )


def mixtures(run: Run) -> list[MixtureTable]:
    """Return what each task received in every training of more than one task."""
    portions_of = {node: _portions(lines) for node, lines in run.logs.items()}
    return [
        MixtureTable(
            node, portions, max(max(one.examples_share, one.tokens_share, one.weight_share) for one in portions)
        )
        for node, portions in portions_of.items()
        if len(portions) > 1
    ]


def _portions(lines: Sequence[LogLine]) -> tuple[Portion, ...]:
    """Return each task's sums over a whole log.

    A line's share of the loss weight speaks for the steps since the line before, so lines count by these steps.
    """
    names = list(dict.fromkeys(name for line in lines for name in line["tasks"]))
    before = [0, *(line["step"] for line in lines[:-1])]
    steps = [line["step"] - previous for line, previous in zip(lines, before, strict=True)]

    def total(task: str, what: str) -> float:
        return sum(line["tasks"][task][what] for line in lines if task in line["tasks"])

    examples = {task: int(total(task, "examples")) for task in names}
    tokens = {task: int(total(task, "tokens")) for task in names}
    weight = {
        task: sum(
            n * line["tasks"][task]["share"] for n, line in zip(steps, lines, strict=True) if task in line["tasks"]
        )
        for task in names
    }
    repeats = lines[-1].get("repeats", {})
    return tuple(
        Portion(
            task=task,
            examples=examples[task],
            examples_share=examples[task] / (sum(examples.values()) or 1),
            tokens=tokens[task],
            tokens_share=tokens[task] / (sum(tokens.values()) or 1),
            weight_share=weight[task] / (sum(weight.values()) or 1.0),
            repeats=repeats.get(task),
        )
        for task in names
    )
