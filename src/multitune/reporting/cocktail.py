"""What a cocktail study has found: chosen on validation rows, told by test rows; as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from multitune import __version__
from multitune.recipes.cocktail import Arm, Budget, CocktailPlan, variant_name
from multitune.recipes.run_folder import write_whole
from multitune.reporting.charts import Mark, Whisker, whisker
from multitune.reporting.comparison import higher_is_better, main_metric
from multitune.reporting.report import environment, signed_text
from multitune.reporting.row_scores import Scored, aligned_rows, task_value
from multitune.reporting.run_folder import BASE, Run, read_run
from multitune.scoring.cocktails import Cocktail, Estimate, cocktail_name, effects_of, estimate, selected, weighted

WIDTH = 260.0
"""Pixels of a drawn effect."""


@dataclass(frozen=True)
class Tried:
    """A cocktail of a target: what it was trained with, its scores (means over seeds), and its gain over alone.

    ``forgotten`` is the mean loss on the tasks that nothing trains on, against the base; None where there are none.
    """

    name: str
    beside: tuple[str, ...]
    validation: float
    test: float
    gain: Estimate
    forgotten: float | None


@dataclass(frozen=True)
class Control:
    """The target alone, trained as often as there were cocktails to choose from, and chosen by validation as well.

    ``ahead`` is what the selected cocktail has over it on test rows.
    """

    trials: int
    test: float
    ahead: Estimate


@dataclass(frozen=True)
class Study:
    """One target under one budget.

    Attributes:
        target, budget, metric: what was asked.
        base: score of the model before training; without: of the mixture of all others.
        tried: every cocktail, the target alone first.
        selected: the best by validation rows; oracle: the best by test rows, which nobody could have chosen.
        longer: the target alone for as long as all together; None under the fixed budget.
        control: None where it was left out.
        effects: of every other ingredient; kind: "Shapley" or "least squares".
    """

    target: str
    budget: Budget
    metric: str
    base: float
    without: float
    tried: tuple[Tried, ...]
    selected: Tried
    oracle: Tried
    longer: Tried | None
    control: Control | None
    kind: str
    effects: Mapping[str, Estimate]

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        one = self.selected
        if not one.beside:
            return f"Train {self.target} alone: no cocktail is better on validation rows."
        gained = f"{signed_text(one.gain.value)} [{signed_text(one.gain.low)}, {signed_text(one.gain.high)}]"
        told = f"Train {self.target} with {', '.join(one.beside)}: {gained} {self.metric} over alone"
        if self.control is not None:
            told += f", {signed_text(self.control.ahead.value)} over the best of {self.control.trials} alone"
        return told + (".", ", and zero is within the interval.")[one.gain.verdict == "unclear"]


class _Scores:
    """The scores of a finished study."""

    def __init__(self, plan: CocktailPlan, folder: Path) -> None:
        self.plan = plan
        names = {variant.name for variant in plan.sweep.variants}
        self.runs: dict[str, Run] = {name: read_run(folder / "variants" / name) for name in sorted(names)}
        first = self.runs[variant_name(plan.seeds[0], "test")]
        self.metrics = {task: main_metric(first, task)[0] for task in first.tasks}

    def scored(self, seed: int, split: str, node: str) -> Scored:
        """Return a run and a node in it."""
        return self.runs[variant_name(seed, split)], node

    def mean(self, seeds: Sequence[int], split: str, node: str, task: str) -> float:
        """Return the mean of the metric over seeds, as it is."""
        return fmean(task_value(self.scored(seed, split, node), task) for seed in seeds)

    def rows(self, groups: Sequence[tuple[Sequence[int], str]], task: str) -> list[np.ndarray]:
        """Return the test scores of (seeds, node), see ``row_scores.aligned_rows``."""
        return aligned_rows([[self.scored(seed, "test", node) for seed in seeds] for seeds, node in groups], task)

    def forgotten(self, node: str) -> float | None:
        """Return the mean loss of a node on the tasks that nothing trains on; None where there are none."""
        lost = [
            (1.0 if higher_is_better(self.metrics[task]) else -1.0)
            * (self.mean(self.plan.seeds, "test", BASE, task) - self.mean(self.plan.seeds, "test", node, task))
            for task in self.plan.general
            if task in self.metrics
        ]
        return fmean(lost) if lost else None


def read_studies(plan: CocktailPlan, folder: Path) -> list[Study]:
    """Return what a finished run says of every target under every budget.

    Args:
        plan: that was run.
        folder: of the sweep.

    Raises:
        MultituneError: a score is missing or is no number.
    """
    scores = _Scores(plan, folder)
    return [_study(plan, scores, target, budget) for budget in plan.budgets for target in plan.targets]


def _study(plan: CocktailPlan, scores: _Scores, target: str, budget: Budget) -> Study:
    seeds = plan.seeds
    nodes = {beside: plan.arms[Arm(beside | {target}, budget)] for beside in plan.tried[target]}
    longer = plan.arms.get(Arm(frozenset([target]), budget, longer=True))
    controls = [
        plan.control_seeds[start : start + len(seeds)] for start in range(0, _controls(plan, target), len(seeds))
    ]
    alone = nodes[frozenset()]
    groups: list[tuple[Sequence[int], str]] = [(seeds, node) for node in nodes.values()]
    groups += [(seeds, longer)] if longer else []
    groups += [(again, alone) for again in controls]
    rows = scores.rows(groups, target)
    by_cocktail = dict(zip(nodes, rows, strict=False))

    def tried(name: str, beside: Cocktail, node: str, row_Kn: np.ndarray) -> Tried:
        return Tried(
            name=name,
            beside=tuple(one for one in plan.sources if one in beside),
            validation=scores.mean(seeds, "validation", node, target),
            test=scores.mean(seeds, "test", node, target),
            gain=estimate(row_Kn - by_cocktail[frozenset()]),
            forgotten=scores.forgotten(node),
        )

    found = {
        beside: tried(cocktail_name(beside | {target}), beside, node, by_cocktail[beside])
        for beside, node in nodes.items()
    }
    sign = 1.0 if higher_is_better(scores.metrics[target]) else -1.0
    best = selected({beside: sign * one.validation for beside, one in found.items()})
    players = [one for one in plan.sources if one != target]
    kind, weights = effects_of(players, list(nodes))
    every = frozenset(plan.sources) - {target}
    return Study(
        target=target,
        budget=budget,
        metric=scores.metrics[target],
        base=scores.mean(seeds, "test", BASE, target),
        without=scores.mean(seeds, "test", plan.arms[Arm(every, budget)], target),
        tried=tuple(found.values()),
        selected=found[best],
        oracle=found[selected({beside: sign * one.test for beside, one in found.items()})],
        longer=tried(f"{target}, as long as all", frozenset(), longer, rows[len(nodes)]) if longer else None,
        control=_control(scores, target, sign, alone, seeds, controls, rows, by_cocktail[best]),
        kind=kind,
        effects={player: estimate(weighted(weights[player], by_cocktail)) for player in players},
    )


def _controls(plan: CocktailPlan, target: str) -> int:
    """Return how many of the control's seeds are this target's: one group per cocktail beyond the first."""
    return min(len(plan.control_seeds), (len(plan.tried[target]) - 1) * len(plan.seeds))


def _control(
    scores: _Scores,
    target: str,
    sign: float,
    alone: str,
    seeds: Sequence[int],
    controls: Sequence[Sequence[int]],
    rows: Sequence[np.ndarray],
    chosen_Kn: np.ndarray,
) -> Control | None:
    """Return the best of the trainings alone by validation rows, and what the chosen cocktail has over it."""
    if not controls:
        return None
    groups = [seeds, *controls]
    rows_of = [rows[0], *rows[len(rows) - len(controls) :]]
    by_validation = [sign * scores.mean(group, "validation", alone, target) for group in groups]
    best = int(np.argmax(by_validation))
    return Control(
        trials=len(groups),
        test=scores.mean(groups[best], "test", alone, target),
        ahead=estimate(chosen_Kn - rows_of[best]),
    )


def answer(plan: CocktailPlan, studies: Sequence[Study]) -> dict[str, Any]:
    """Return a study as a program wants it."""
    return {
        "ingredients": [asdict(source) for source in plan.sources.values()],
        "seeds": plan.seeds,
        "trainings": plan.trainings,
        "studies": [asdict(study) | {"advice": study.advice} for study in studies],
        "warnings": [*plan.warnings, *warnings(studies)],
    }


def warnings(studies: Sequence[Study]) -> list[str]:
    """Return what stands against a choice."""
    told = []
    for study in studies:
        if study.control is not None and study.selected.beside and study.control.ahead.low <= 0:
            told.append(
                f"{study.target}, {study.budget} budget: the best of {study.control.trials} trainings alone is as good "
                "within the interval; part of the gain may be the choice among many."
            )
        if study.longer is not None and study.selected.beside and study.longer.gain.value >= study.selected.gain.value:
            told.append(
                f"{study.target}: alone, trained as long as all together, it gains as much: length, not the mixture."
            )
    return told


def drawn_effects(study: Study) -> dict[str, Whisker]:
    """Return every ingredient's effect as a drawing, all on one scale."""
    marks = {name: Mark(one.value, (one.low, one.high), ()) for name, one in study.effects.items()}
    ends = [0.0, *(end for mark in marks.values() for end in mark.ends)]
    return {name: whisker(mark, low=min(ends), high=max(ends), width=WIDTH) for name, mark in marks.items()}


def write_cocktail_page(name: str, plan: CocktailPlan, studies: Sequence[Study], out: Path) -> Path:
    """Write the page about a study and return its path."""
    page = (
        environment()
        .get_template("cocktail.html")
        .render(
            name=name,
            plan=plan,
            studies=[(study, drawn_effects(study)) for study in studies],
            warnings=[*plan.warnings, *warnings(studies)],
            lower={study.target: not higher_is_better(study.metric) for study in studies},
            version=__version__,
        )
    )
    write_whole(out, page)
    return out
