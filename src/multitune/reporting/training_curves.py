"""What the training logs say: loss per task over the steps, throughput, and what the mixture gave each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multitune.reporting.charts import Panel, Series, line_panel, smoothed
from multitune.reporting.comparison import arm_of
from multitune.reporting.run_folder import Run

LogLine = dict[str, Any]
MEMORY = 0.8  # of the running mean over log lines: about five lines speak at once
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
    overall: list[Series] = []
    by_task: dict[str, list[Series]] = {task: [] for task in runs[0].tasks}
    for run in runs:
        for node, lines in run.logs.items():
            arm = arm_of(run, node)
            if arm == node:
                overall += _series(arm, [(line["step"], line.get("loss"), 1.0) for line in lines])
            for task in dict.fromkeys(name for line in lines for name in line["tasks"]):
                told = [(line["step"], line["tasks"][task]) for line in lines if task in line["tasks"]]
                points = [(step, sums["loss"], float(sums["tokens"])) for step, sums in told]
                by_task.setdefault(task, []).extend(_series(arm, points))
    names = arm_names(runs)
    return Curves(
        overall=line_panel("Loss over all tasks", overall, names, width=560, height=230) if overall else None,
        tasks=tuple(
            line_panel(task, series, names, width=264, height=150) for task, series in by_task.items() if series
        ),
    )


def arm_names(runs: Sequence[Run]) -> list[str]:
    """Return the arms that trained, in the order of the recipe."""
    return list(dict.fromkeys(arm_of(run, node) for run in runs for node in run.logs))


def _series(name: str, points: Sequence[tuple[float, float | None, float]]) -> list[Series]:
    """Return one line of running means through (step, value, count) points; [] when no value is a number."""
    known = [(step, value, count) for step, value, count in points if value is not None and count > 0]
    if not known:
        return []
    means = smoothed([value for _, value, _ in known], [count for _, _, count in known], memory=MEMORY)
    line = [(float(step), mean) for (step, _, _), mean in zip(known, means, strict=True)]
    stride = max(1, len(line) // MOST_POINTS)
    return [Series(name, [*line[:-1:stride], line[-1]])]


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
