"""The table task x (before, after, alone) of one run, or of several runs that differ by their seed only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from multitune.reporting.intervals import Pair, aligned_differences, interval_of_task_mean
from multitune.reporting.run_folder import BASE, Run, read_predictions
from multitune.scoring.predictions import Prediction
from multitune.scoring.significance import paired_difference_over_seeds

Verdict = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Measured:
    """A score: the mean over runs, their standard deviation where there are several, and each run's value."""

    value: float
    spread: float | None
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """One arm's score minus another's on the same examples.

    Attributes:
        value: the mean over runs, in the metric's own direction.
        low, high: 95 % interval; None where the metric is not a mean over examples or no predictions were kept.
        runs: each run's difference.
        verdict: better or worse when the interval leaves out zero, else unclear.
    """

    value: float
    low: float | None
    high: float | None
    runs: tuple[float, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Contrast:
    """Which arm is compared with which."""

    arm: str
    against: str


@dataclass(frozen=True)
class TaskRow:
    """One task, or a mean over tasks: its scores by arm and its differences by contrast."""

    task: str
    metric: str
    n: int
    higher_is_better: bool
    scores: Mapping[str, Measured]
    differences: Mapping[str, Difference]  # keyed by "arm - against"


@dataclass(frozen=True)
class Table:
    """Training tasks or held-out tasks; ``means`` are unweighted means over the tasks of one metric."""

    title: str
    arms: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    rows: tuple[TaskRow, ...]
    means: tuple[TaskRow, ...]


@dataclass(frozen=True)
class Comparison:
    """The tables of one recipe, over the runs that differ by their seed only."""

    name: str
    runs: tuple[Run, ...] = field(repr=False)
    tables: tuple[Table, ...] = ()


def key(contrast: Contrast) -> str:
    """Return the name under which a row keeps a contrast's difference."""
    return f"{contrast.arm} - {contrast.against}"


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Return one comparison per recipe; runs whose recipes differ by the seed only are averaged together."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        recipe = {name: value for name, value in run.recipe.items() if name != "seed"}
        groups.setdefault(json.dumps(recipe, sort_keys=True, default=str), []).append(run)
    return [_comparison(group) for group in groups.values()]


def answer(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return comparisons as a program wants them: names, folders, seeds and tables."""
    return [
        {
            "recipe": one.name,
            "runs": [str(run.folder) for run in one.runs],
            "seeds": [run.seed for run in one.runs],
            "tables": one.tables,
        }
        for one in comparisons
    ]


def arm_of(run: Run, node: str) -> str:
    """Return the arm a node belongs to: its step, for a step that trains each task alone; else the node itself."""
    step, _, task = node.partition(".")
    steps = run.recipe.get("steps") or {}
    each = isinstance(steps.get(step), Mapping) and steps[step].get("tasks") == "each"
    return step if each and task else node


def node_of(run: Run, arm: str, task: str) -> str:
    """Return the node whose model speaks for an arm on a task; the inverse of ``arm_of``."""
    alone = f"{arm}.{task}"
    return alone if alone in run.nodes and arm_of(run, alone) == arm else arm


def is_alone(run: Run, arm: str) -> bool:
    """Whether an arm trains one model per task."""
    return arm not in run.nodes


def _comparison(runs: Sequence[Run]) -> Comparison:
    first = runs[0]
    arms = tuple(dict.fromkeys(arm_of(first, node) for node in first.nodes))
    trained = [task for task in first.tasks if not is_held_out(first, task)]
    held_out = [task for task in first.tasks if is_held_out(first, task)]
    answers = Answers(runs)
    tables = [
        _table(title, names, arms, runs, answers)
        for title, names in (("Training tasks", trained), ("Held-out tasks", held_out))
        if names
    ]
    return Comparison(name=first.name, runs=tuple(runs), tables=tuple(tables))


def is_held_out(run: Run, task: str) -> bool:
    """Whether no step of a run trains on a task: the recipe says so, or no log line knows it."""
    if run.task_settings(task):
        return bool(run.task_settings(task).get("held_out", False))
    logged = {name for lines in run.logs.values() for line in lines for name in line["tasks"]}
    return bool(logged) and task not in logged


class Answers:
    """Every prediction file, read once."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._read: dict[tuple[int, str, str], list[Prediction]] = {}

    def of(self, run: int, arm: str, task: str) -> list[Prediction]:
        node = node_of(self.runs[run], arm, task)
        place = (run, node, task)
        if place not in self._read:
            self._read[place] = read_predictions(self.runs[run], node, task)
        return self._read[place]

    def of_metric(self, arm: str, task: str, value_K: Sequence[float]) -> list[list[Prediction]]:
        """Return every run's answers where the examples' scores average to the metric; [] for other metrics
        (macro-F1, correlations), and where answers of a run were not kept."""
        found = [self.of(run, arm, task) for run in range(len(self.runs))]
        means = [statistics.fmean(one.score for one in side) if side else float("inf") for side in found]
        fits = all(abs(mean - value) <= 1e-6 for mean, value in zip(means, value_K, strict=True))
        return found if fits else []


def _table(title: str, tasks: Sequence[str], arms: tuple[str, ...], runs: Sequence[Run], answers: Answers) -> Table:
    found = [_task_row(task, arms, runs, answers) for task in tasks]
    rows = [row for row, _ in found]
    shown = tuple(arm for arm in arms if any(arm in row.scores for row in rows))
    contrasts = tuple(c for c in _contrasts(runs[0], arms) if any(key(c) in row.differences for row in rows))
    by_metric: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_metric.setdefault(row.metric, []).append(i)
    means = tuple(
        _mean_row([rows[i] for i in members], [found[i][1] for i in members], shown, contrasts)
        for members in by_metric.values()
        if len(members) > 1
    )
    return Table(title=title, arms=shown, contrasts=contrasts, rows=tuple(rows), means=means)


def _contrasts(run: Run, arms: Sequence[str]) -> list[Contrast]:
    """Every joint arm against the base, and the last one against each arm that trains tasks alone."""
    joint = [arm for arm in arms if arm != BASE and not is_alone(run, arm)]
    alone = [arm for arm in arms if is_alone(run, arm)]
    if not joint:
        return [Contrast(arm, BASE) for arm in alone if BASE in arms]
    against_base = [Contrast(arm, BASE) for arm in joint if BASE in arms]
    return against_base + [Contrast(joint[-1], arm) for arm in alone]


def _task_row(
    task: str, arms: Sequence[str], runs: Sequence[Run], answers: Answers
) -> tuple[TaskRow, dict[str, list[Pair]]]:
    """Return a task's row, and per contrast the answers that its interval came from."""
    metric, split = main_metric(runs[0], task)
    values: dict[str, list[float]] = {}
    n = 0
    for arm in arms:
        found = [value_of(run, node_of(run, arm, task), task, split, metric) for run in runs]
        if all(entry is not None for entry in found):
            values[arm] = [entry[0] for entry in found if entry is not None]
            n = max(n, *(entry[1] for entry in found if entry is not None))
    higher = higher_is_better(metric)
    differences, pairs_of = {}, {}
    for contrast in _contrasts(runs[0], arms):
        if contrast.arm in values and contrast.against in values:
            pairs = _pairs(task, contrast, values, answers)
            by_run = [a - b for a, b in zip(values[contrast.arm], values[contrast.against], strict=True)]
            differences[key(contrast)] = _difference(by_run, _interval(pairs), higher)
            pairs_of[key(contrast)] = pairs
    row = TaskRow(task, metric, n, higher, {arm: measured(by_run) for arm, by_run in values.items()}, differences)
    return row, pairs_of


def _pairs(task: str, contrast: Contrast, values: Mapping[str, list[float]], answers: Answers) -> list[Pair]:
    """Return each run's answers on both sides; [] where they say nothing of the metric or are on other examples."""
    before = answers.of_metric(contrast.against, task, values[contrast.against])
    after = answers.of_metric(contrast.arm, task, values[contrast.arm])
    pairs: list[Pair] = list(zip(before, after, strict=True)) if before and after else []
    return pairs if pairs and aligned_differences(pairs).size else []


def _interval(pairs: Sequence[Pair]) -> tuple[float, float] | None:
    if not pairs:
        return None
    found = paired_difference_over_seeds(pairs)
    return found.low, found.high


def _mean_row(
    rows: Sequence[TaskRow],
    pairs_of: Sequence[Mapping[str, list[Pair]]],
    arms: Sequence[str],
    contrasts: Sequence[Contrast],
) -> TaskRow:
    """Return the unweighted mean over the tasks of one metric; an arm that lacks one of the tasks is left out."""
    full = [arm for arm in arms if all(arm in row.scores for row in rows)]
    scores = {arm: measured(_column_means([row.scores[arm].runs for row in rows])) for arm in full}
    differences = {}
    for name in map(key, contrasts):
        if all(name in row.differences for row in rows):
            by_run = _column_means([row.differences[name].runs for row in rows])
            interval = None
            if all(task[name] for task in pairs_of):
                interval = interval_of_task_mean([aligned_differences(task[name]) for task in pairs_of])
            differences[name] = _difference(by_run, interval, rows[0].higher_is_better)
    return TaskRow(
        task=f"mean of the {len(rows)} tasks",
        metric=rows[0].metric,
        n=sum(row.n for row in rows),
        higher_is_better=rows[0].higher_is_better,
        scores=scores,
        differences=differences,
    )


def _column_means(by_task: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*by_task, strict=True)]


def measured(runs: Sequence[float]) -> Measured:
    """Return the mean over runs, with their spread where there are several."""
    spread = statistics.stdev(runs) if len(runs) > 1 else None
    return Measured(value=statistics.fmean(runs), spread=spread, runs=tuple(runs))


def _difference(by_run: Sequence[float], interval: tuple[float, float] | None, higher: bool) -> Difference:
    low, high = interval or (None, None)
    verdict: Verdict = "unclear"
    if low is not None and high is not None and (low > 0 or high < 0):
        verdict = "better" if (low > 0) == higher else "worse"
    return Difference(statistics.fmean(by_run), low, high, tuple(by_run), verdict)


def main_metric(run: Run, task: str) -> tuple[str, str]:
    """Return the metric and split that stand for a task: its first on the scoreboard, the test split before others."""
    rows = [row for row in run.scores if row["task"] == task]
    first = next((row for row in rows if row["split"] == "test"), rows[0])
    return str(first["metric"]), str(first["split"])


def higher_is_better(metric: str) -> bool:
    """Whether more is better; a metric that is not installed here is taken to be so."""
    from multitune.errors import MultituneError
    from multitune.tasks.metrics import metric as find_metric

    try:
        return find_metric(metric).higher_is_better
    except MultituneError:
        return True


def value_of(run: Run, node: str, task: str, split: str, metric: str) -> tuple[float, int] | None:
    """Return a score and its number of examples; None where the node was not scored so."""
    wanted = (node, task, split, metric)
    found = [row for row in run.scores if (row["step"], row["task"], row["split"], row["metric"]) == wanted]
    return (float(found[-1]["value"]), int(found[-1]["n"])) if found else None
