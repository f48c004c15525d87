"""What every value of a sweep's axis does to every task, against the axis's first value, paired by seed."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.reporting.comparison import (
    Answers,
    Measured,
    Verdict,
    arm_of,
    compare,
    higher_is_better,
    is_held_out,
    main_metric,
    measured,
    node_of,
    value_of,
)
from multitune.reporting.comparison import (
    answer as comparisons_answer,
)
from multitune.reporting.intervals import aligned_differences
from multitune.reporting.run_folder import Run, read_json, read_run
from multitune.scoring.seeds import holm, paired_seed_difference
from multitune.scoring.significance import paired_difference_over_seeds

SEED = "seed"  # the recipe's key, and so the axis's name
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Axis:
    """An axis: its name, the recipe's key that it sets, and the names of its values."""

    name: str
    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class SweepRuns:
    """A sweep, read from its folder.

    Attributes:
        folder: as the user gave it.
        name: of the recipe.
        axes: in the order of the recipe.
        runs: every variant that has scores: its value's name by axis, and its run.
        missing: names of variants without scores.
    """

    folder: Path
    name: str
    axes: tuple[Axis, ...]
    runs: tuple[tuple[Mapping[str, str], Run], ...] = field(repr=False)
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """The score at one value of an axis minus the score at its first value.

    Attributes:
        mean: over seeds.
        low, high: 95 % interval over seeds; of a single seed over its examples; None where there is neither.
        seeds, wins, losses: pairs, and in how many the value was better or worse.
        bootstrap_p: two-sided p-value over seeds and examples; None where the score is no mean over examples.
        sign_p: of the exact sign test over seeds.
        bootstrap_p_holm, sign_p_holm: the same, corrected for the number of differences in the table.
        verdict: better or worse where the interval leaves out zero and the corrected bootstrap agrees, else unclear.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    wins: int
    losses: int
    bootstrap_p: float | None
    sign_p: float
    bootstrap_p_holm: float | None = None
    sign_p_holm: float | None = None
    verdict: Verdict = "unclear"


@dataclass(frozen=True)
class EffectRow:
    """One task, or a mean over tasks: its scores by value, and the effects of all values but the first."""

    task: str
    metric: str
    n: int
    higher_is_better: bool
    scores: Mapping[str, Measured]
    effects: Mapping[str, Effect]


@dataclass(frozen=True)
class EffectTable:
    """What an axis does to one arm, at one setting of the other axes.

    Attributes:
        axis: its name; values: those that have scores, the first one is what the others are compared with.
        setting: value by axis, of the other axes except the seed.
        arm: the step whose model is scored.
        title: training tasks or held-out tasks.
        rows, means: per task, and unweighted over the tasks of one metric.
    """

    axis: str
    values: tuple[str, ...]
    setting: Mapping[str, str]
    arm: str
    title: str
    rows: tuple[EffectRow, ...]
    means: tuple[EffectRow, ...]


def is_sweep(folder: Path) -> bool:
    """Whether a folder was left by the run of a recipe with a sweep."""
    return (folder / "sweep.json").is_file()


def read_sweep(folder: Path) -> SweepRuns:
    """Read a sweep's folder; variants without scores are named and left out.

    Raises:
        MultituneError: nothing has been scored yet.
    """
    described = read_json(folder / "sweep.json")
    axes = tuple(Axis(axis["name"], axis["key"], tuple(axis["values"])) for axis in described["axes"])
    runs, missing = [], []
    for variant in described["variants"]:
        place = folder / "variants" / variant["name"]
        if (place / "scoreboard.parquet").is_file():
            runs.append((variant["values"], read_run(place)))
        else:
            missing.append(variant["name"])
    if not runs:
        raise MultituneError(
            "Nothing of the sweep has been scored yet.",
            str(folder),
            "Let it go on with `multitune run`, with scoring switched on in the recipe.",
        )
    return SweepRuns(folder, described["name"], axes, tuple(runs), tuple(missing))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of some folders; a sweep's folder stands for its variants."""
    return [
        run
        for folder in folders
        for run in ([run for _, run in read_sweep(folder).runs] if is_sweep(folder) else [read_run(folder)])
    ]


def setting(values: Mapping[str, str]) -> str:
    """Return "mixture=equal, learning_rate=0.001": where a variant stands on all axes but the seed."""
    return ", ".join(f"{axis}={value}" for axis, value in values.items() if axis != SEED)


def effects(sweep: SweepRuns) -> list[EffectTable]:
    """Return the tables of a sweep: per axis but the seed, setting of the other axes, and arm that the axis changes."""
    tables = []
    for axis in (axis for axis in sweep.axes if axis.key != SEED and len(axis.values) > 1):
        others = [other for other in sweep.axes if other.key != SEED and other is not axis]
        for chosen in product(*(other.values for other in others)):
            setting = {other.name: value for other, value in zip(others, chosen, strict=True)}
            tables += list(_tables(sweep, axis, setting))
    return tables


def answer(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what a page tells of run folders as a program wants it: comparisons, and the effects of sweeps' axes."""
    tables = [table for folder in folders if is_sweep(folder) for table in effects(read_sweep(folder))]
    swept = {"effects": tables} if any(map(is_sweep, folders)) else {}
    return {"comparisons": comparisons_answer(compare(read_runs(folders))), **swept}


def _tables(sweep: SweepRuns, axis: Axis, setting: Mapping[str, str]) -> Iterator[EffectTable]:
    """Yield the tables of an axis at one setting, over the seeds that all values have."""
    by_value = {value: _by_seed(sweep, {**setting, axis.name: value}) for value in axis.values}
    by_value = {value: runs for value, runs in by_value.items() if runs}
    if len(by_value) < 2:
        return
    seeds = [seed for seed in next(iter(by_value.values())) if all(seed in runs for runs in by_value.values())]
    paired = {value: [runs[seed] for seed in seeds] for value, runs in by_value.items()}
    if not seeds:
        return
    first = next(iter(paired.values()))[0]
    for arm in dict.fromkeys(arm_of(first, node) for node in first.nodes):
        if not _changes(paired, arm):
            continue
        answers = {value: Answers(runs) for value, runs in paired.items()}
        for title, held_out in (("Training tasks", False), ("Held-out tasks", True)):
            tasks = [task for task in first.tasks if is_held_out(first, task) == held_out]
            if rows := [row for task in tasks if (row := _row(task, arm, paired, answers)) is not None]:
                corrected = _corrected(rows)
                means = tuple(_means(corrected, list(paired)))
                yield EffectTable(axis.name, tuple(paired), setting, arm, title, tuple(corrected), means)


def _by_seed(sweep: SweepRuns, point: Mapping[str, str]) -> dict[str, Run]:
    """Return the runs at one point of all axes but the seed, by seed ("" where the seed is no axis)."""
    return {
        values.get(SEED, ""): run
        for values, run in sweep.runs
        if all(values[name] == value for name, value in point.items())
    }


def _changes(paired: Mapping[str, Sequence[Run]], arm: str) -> bool:
    """Whether an arm's scores are other ones at some value: shared nodes lead to the same file."""

    def files(run: Run) -> tuple[str, ...]:
        nodes = [node for node in run.nodes if arm_of(run, node) == arm]
        return tuple(os.path.realpath(run.folder / "steps" / node / "scores.json") for node in nodes)

    return len({tuple(files(run) for run in runs) for runs in paired.values()}) > 1


def _row(task: str, arm: str, paired: Mapping[str, Sequence[Run]], answers: Mapping[str, Answers]) -> EffectRow | None:
    """Return a task's row; None where the arm is not scored on it at every value and seed."""
    first = next(iter(paired.values()))[0]
    metric, split = main_metric(first, task)
    values: dict[str, list[float]] = {}
    n = 0
    for value, runs in paired.items():
        found = [value_of(run, node_of(run, arm, task), task, split, metric) for run in runs]
        scored = [one for one in found if one is not None]
        if len(scored) < len(runs):
            return None
        values[value] = [one[0] for one in scored]
        n = max(n, *(one[1] for one in scored))
    higher = higher_is_better(metric)
    reference, *others = values
    effects = {}
    for value in others:
        sides = [answers[side].of_metric(arm, task, values[side]) for side in (reference, value)]
        effects[value] = _effect(values[reference], values[value], sides, higher)
    return EffectRow(task, metric, n, higher, {value: measured(runs) for value, runs in values.items()}, effects)


def _effect(before_K: list[float], after_K: list[float], sides: list[Any], higher: bool) -> Effect:
    over_seeds = paired_seed_difference(before_K, after_K, seed=0)
    low: float | None = over_seeds.low
    high: float | None = over_seeds.high
    bootstrap_p = None
    pairs = list(zip(*sides, strict=True)) if all(sides) else []
    over_examples = paired_difference_over_seeds(pairs) if pairs and aligned_differences(pairs).size else None
    if over_examples is not None:
        bootstrap_p = over_examples.p
    if over_seeds.seeds == 1:
        low, high = (over_examples.low, over_examples.high) if over_examples is not None else (None, None)
    wins, losses = over_seeds.wins, over_seeds.losses
    return Effect(
        mean=over_seeds.mean,
        low=low,
        high=high,
        seeds=over_seeds.seeds,
        wins=wins if higher else losses,
        losses=losses if higher else wins,
        bootstrap_p=bootstrap_p,
        sign_p=over_seeds.sign_test_p,
    )


def _corrected(rows: Sequence[EffectRow]) -> list[EffectRow]:
    """Return the rows with p-values corrected over all differences, of every task and value, and verdicts."""
    found = [one for row in rows for one in row.effects.values()]
    sign = iter(holm([one.sign_p for one in found]))
    bootstrap = iter(holm([one.bootstrap_p for one in found if one.bootstrap_p is not None]))
    corrected = []
    for row in rows:
        effects = {}
        for value, one in row.effects.items():
            p = next(bootstrap) if one.bootstrap_p is not None else None
            verdict = _verdict(one, p, row.higher_is_better)
            effects[value] = replace(one, bootstrap_p_holm=p, sign_p_holm=next(sign), verdict=verdict)
        corrected.append(replace(row, effects=effects))
    return corrected


def _verdict(one: Effect, bootstrap_p_holm: float | None, higher: bool) -> Verdict:
    if one.low is None or one.high is None or one.low <= 0 <= one.high:
        return "unclear"
    if bootstrap_p_holm is not None and bootstrap_p_holm > SIGNIFICANT:
        return "unclear"
    return "better" if (one.low > 0) == higher else "worse"


def _means(rows: Sequence[EffectRow], values: Sequence[str]) -> Iterator[EffectRow]:
    """Yield the unweighted means over the tasks of one metric, seed by seed."""
    for metric in dict.fromkeys(row.metric for row in rows):
        own = [row for row in rows if row.metric == metric]
        if len(own) < 2:
            continue
        scores_of = {
            value: [statistics.fmean(seed) for seed in zip(*(row.scores[value].runs for row in own), strict=True)]
            for value in values
        }
        higher = own[0].higher_is_better
        effects = {}
        for value in values[1:]:
            one = _effect(scores_of[values[0]], scores_of[value], [], higher)
            effects[value] = replace(one, verdict=_verdict(one, None, higher))
        scores = {value: measured(runs) for value, runs in scores_of.items()}
        yield EffectRow(f"mean of the {len(own)} tasks", metric, sum(row.n for row in own), higher, scores, effects)
