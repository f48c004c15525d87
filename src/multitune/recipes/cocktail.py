"""The runs of a cocktail study: one train step of a recipe, on many mixtures of its tasks, with several seeds.

    c_s        examples of source s alone: epochs x min(rows, cap), or the step's examples or batches
    additive   every source brings its c_s: a cocktail trains as long as its ingredients together
    fixed      all learn as many answer tokens, B = mean over s of c_s a_s, shared equally: n_s = B / (|S| a_s)

a_s being the mean answer tokens of a row of s. The first is how mixtures are usually made; only the second tells
diversity from length (arXiv:2410.01109 and its reviews).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from multitune.errors import MultituneError, nearest
from multitune.mixing.policies import Weights
from multitune.recipes.loading import load_recipe
from multitune.recipes.repeated_step import on_tasks_only, refuse_encoder, step_names, train_step_of, trained_tasks
from multitune.recipes.schema import Recipe, TrainStep
from multitune.recipes.sweep import Axis, Sweep, Value, Variant
from multitune.scoring.cocktails import Cocktail, all_cocktails, cocktail_name, sampled_cocktails, usual_cocktails
from multitune.scoring.score import ScoreConfig
from multitune.training.config import TrainingConfig

Budget = Literal["additive", "fixed"]
Choice = Literal["all", "usual"] | int

MOST_FOR_ALL = 4
"""With so many ingredients beside the target, or fewer, all subsets are trained when nobody says otherwise."""

SPLITS = ("test", "validation")
OFTEN = 4
"""Passes over a source's rows beyond which the plan says so."""


@dataclass(frozen=True)
class Source:
    """An ingredient.

    Attributes:
        name: of the task.
        rows: that can be trained on.
        answer_tokens: mean tokens of an answer.
        examples: that it is trained on alone, c_s.
    """

    name: str
    rows: int
    answer_tokens: float
    examples: float


@dataclass(frozen=True)
class Arm:
    """One cocktail under one budget; ``longer`` is the target alone for as long as all together, additively."""

    cocktail: Cocktail
    budget: Budget
    longer: bool = False

    @property
    def label(self) -> str:
        """Its name, whatever the order of the ingredients."""
        return f"{self.budget}-{cocktail_name(self.cocktail)}" + ("-longer" if self.longer else "")


@dataclass(frozen=True)
class CocktailPlan:
    """What `multitune cocktail` runs.

    Attributes:
        sweep: variants by seed and scored split; trainings are shared between the splits.
        name, step: the train step whose settings all have.
        sources: every ingredient.
        targets: whose gains are asked for.
        tried: the cocktails of every target: what is trained beside it, {} among them.
        arms: the step's name by arm.
        draws: examples of every source by arm.
        seeds: of all arms; control_seeds: of the targets alone, so many as other cocktails were tried.
    """

    sweep: Sweep
    name: str
    step: TrainStep
    sources: Mapping[str, Source]
    targets: tuple[str, ...]
    tried: Mapping[str, tuple[Cocktail, ...]]
    arms: Mapping[Arm, str]
    draws: Mapping[Arm, Mapping[str, float]]
    seeds: tuple[int, ...]
    control_seeds: tuple[int, ...]

    @property
    def trainings(self) -> int:
        """Trainings of all seeds together."""
        alone = {self.arms[Arm(frozenset([target]), budget)] for target in self.targets for budget in self.budgets}
        return len(self.seeds) * len(set(self.arms.values())) + len(self.control_seeds) * len(alone)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Those that were asked for."""
        return tuple(dict.fromkeys(arm.budget for arm in self.arms))

    @property
    def general(self) -> tuple[str, ...]:
        """The tasks that no arm trains on: what the model may forget, or learn besides."""
        return tuple(task for task in self.sweep.variants[0].recipe.tasks if task not in self.sources)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sources that an arm reads so often that it learns them by heart."""
        told = []
        for source in self.sources.values():
            passes = max(draws.get(source.name, 0.0) for draws in self.draws.values()) / source.rows
            if passes > OFTEN:
                told.append(f"{source.name} has {source.rows:,} rows, and an arm reads them {passes:.1f} times.")
        return tuple(told)


def cocktail_plan(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    targets: Sequence[str],
    step: str | None = None,
    tasks: Sequence[str] = (),
    cocktails: Choice | None = None,
    budgets: Sequence[Budget] = ("additive", "fixed"),
    cap: int | None = None,
    seeds: int = 3,
    control: bool = True,
) -> CocktailPlan:
    """Return the sweep of a cocktail study; reads the training rows of all ingredients once.

    Args:
        path, overrides: the recipe, as for `load_recipe`.
        targets: the tasks whose best cocktail is asked for.
        step: its train step; None where there is one alone.
        tasks: the ingredients; none: the tasks of the step. All others of the recipe are scored only.
        cocktails: which mixtures with a target are trained: all, the usual ones (pairs, all but one, all), or so many
            drawn at random beside pairs and all; None: all, of at most 16.
        budgets: how long a cocktail trains.
        cap: rows beyond which a source does not count.
        seeds: training seeds, from the recipe's own on.
        control: whether each target alone is trained as often as there are cocktails to choose from.

    Raises:
        MultituneError: an unknown target, one ingredient, a task without test or validation rows; whatever
            `transfer_plan` refuses.
    """
    recipe = load_recipe(path, overrides)
    name, found = train_step_of(recipe, step)
    ingredients = trained_tasks(recipe, name, found, tasks)
    _refuse(recipe, ingredients, targets)
    refuse_encoder(recipe)
    sources = {one: _source(recipe, found.training, one, cap) for one in ingredients}
    tried = {target: tuple(_tried(ingredients, target, cocktails, recipe.seed)) for target in targets}
    draws = {arm: _draws(arm, sources) for arm in _arms(ingredients, tried, budgets)}
    arms, steps = _steps(found, draws)
    alone = {arms[Arm(frozenset([target]), budget)] for target in targets for budget in budgets}
    own = tuple(range(recipe.seed, recipe.seed + seeds))
    others = (max(map(len, tried.values())) - 1) * seeds if control else 0
    again = tuple(range(own[-1] + 1, own[-1] + 1 + others))
    return CocktailPlan(
        sweep=_sweep(recipe, steps, {one: step for one, step in steps.items() if one in alone}, own, again),
        name=name,
        step=found,
        sources=sources,
        targets=tuple(targets),
        tried=tried,
        arms=arms,
        draws=draws,
        seeds=own,
        control_seeds=again,
    )


def _refuse(recipe: Recipe, ingredients: Sequence[str], targets: Sequence[str]) -> None:
    for target in targets:
        if target not in ingredients:
            raise MultituneError(
                f"The target '{target}' is no ingredient.{nearest(target, ingredients)}",
                "--target",
                f"Use some of: {', '.join(ingredients)}.",
            )
    for name in ingredients:
        task = recipe.tasks[name]
        if task.validation is None or task.test is None:
            lacking = "validation" if task.validation is None else "test"
            raise MultituneError(
                f"'{name}' has no {lacking} rows: cocktails are chosen on validation rows and told by test rows.",
                f"tasks.{name}",
                f"Give it both, for example {lacking}: {{fraction: 0.1}}.",
            )


def _source(recipe: Recipe, training: TrainingConfig, name: str, cap: int | None) -> Source:
    """Return an ingredient, its rows counted and the answers of a sample tokenised."""
    from multitune.models.pretrained import load_tokenizer, model_facts
    from multitune.recipes.plan import statistics
    from multitune.tasks.prompting import resolve

    task = resolve(recipe.tasks[name], recipe.folder)
    found = statistics(task, recipe, load_tokenizer(recipe.base), model_facts(recipe.base), training.max_length)
    examples = (training.epochs or 1.0) * min(found.rows, cap or found.rows)
    if training.examples is not None:
        examples = training.examples
    if training.steps is not None:
        examples = training.steps * training.batch_size
    return Source(name, found.rows, float(found.label_counts.mean()), examples)


def _tried(ingredients: Sequence[str], target: str, choice: Choice | None, seed: int) -> list[Cocktail]:
    """Return what is trained beside a target: {} first."""
    others = [one for one in ingredients if one != target]
    if choice is None:
        choice = "all" if len(others) <= MOST_FOR_ALL else "usual"
    if choice == "all":
        return [frozenset(), *all_cocktails(others)]
    if choice == "usual":
        return [frozenset(), *usual_cocktails(others)]
    return [frozenset(), *sampled_cocktails(others, choice, seed)]


def _arms(ingredients: Sequence[str], tried: Mapping[str, Sequence[Cocktail]], budgets: Sequence[Budget]) -> list[Arm]:
    """Return every arm once: each target with what is tried beside it, all without it, and alone for longer."""
    everything = frozenset(ingredients)
    arms: dict[Arm, None] = {}
    for budget in budgets:
        for one in ingredients:
            arms[Arm(frozenset([one]), budget)] = None
        for target, beside in tried.items():
            arms |= {Arm(one | {target}, budget): None for one in beside}
            arms[Arm(everything - {target}, budget)] = None
            if budget == "additive":
                arms[Arm(frozenset([target]), budget, longer=True)] = None
    return list(arms)


def _draws(arm: Arm, sources: Mapping[str, Source]) -> dict[str, float]:
    """Return how many examples of every source an arm trains on."""
    if arm.longer:
        (target,) = arm.cocktail
        return {target: sum(source.examples for source in sources.values())}
    if arm.budget == "additive":
        return {name: source.examples for name, source in sources.items() if name in arm.cocktail}
    tokens = fmean(source.examples * source.answer_tokens for source in sources.values())
    share = tokens / len(arm.cocktail)
    return {name: share / source.answer_tokens for name, source in sources.items() if name in arm.cocktail}


def _steps(step: TrainStep, draws: Mapping[Arm, Mapping[str, float]]) -> tuple[dict[Arm, str], dict[str, TrainStep]]:
    """Return the step's name by arm, and the steps; arms that draw the same share one."""
    first: dict[tuple[tuple[str, float], ...], Arm] = {}
    same = {
        arm: first.setdefault(tuple((name, round(count, 6)) for name, count in counts.items()), arm)
        for arm, counts in draws.items()
    }
    names = step_names({(arm.label,): arm.label for arm in dict.fromkeys(same.values())})
    steps = {names[(arm.label,)]: _step(step, draws[arm]) for arm in dict.fromkeys(same.values())}
    return {arm: names[(one.label,)] for arm, one in same.items()}, steps


def _step(step: TrainStep, draws: Mapping[str, float]) -> TrainStep:
    examples = max(1, round(sum(draws.values())))
    training = step.training.model_copy(update={"epochs": None, "steps": None, "examples": examples})
    only = on_tasks_only(step, training, tuple(draws))
    return only.model_copy(update={"mixture": Weights(policy="weights", weights=dict(draws))})


def _sweep(
    recipe: Recipe,
    steps: Mapping[str, TrainStep],
    alone: Mapping[str, TrainStep],
    seeds: Sequence[int],
    control_seeds: Sequence[int],
) -> Sweep:
    """Return a variant per seed and scored split; the control's train the targets alone."""
    axes = tuple(
        Axis(name, key, tuple(Value(str(value), value, "") for value in values))
        for name, key, values in (("seed", "seed", [*seeds, *control_seeds]), ("split", "score.split", SPLITS))
    )
    variants = []
    for seed in (*seeds, *control_seeds):
        for split in SPLITS:
            score = (recipe.score or ScoreConfig()).model_copy(update={"split": split})
            chosen = {"seed": seed, "score": score, "steps": dict(steps if seed in seeds else alone)}
            values = {"seed": str(seed), "split": split}
            variants.append(Variant(variant_name(seed, split), values, recipe.model_copy(update=chosen)))
    return Sweep(recipe.name, axes, tuple(variants))


def variant_name(seed: int, split: str) -> str:
    """Return the name of the variant, and of its folder."""
    return f"seed={seed},split={split}"
