"""From a recipe to the runs of a cocktail study: budgets, what is trained, and every recipe that cannot be studied."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from multitune.errors import MultituneError
from multitune.mixing.mixture import Mixture
from multitune.mixing.policies import Proportional, Weights
from multitune.recipes.cocktail import Arm, Source, _draws, cocktail_plan


@pytest.fixture
def both(recipe):
    """The recipe with validation rows: sign and echo are ingredients."""
    for name in ("sign", "echo"):
        recipe["tasks"][name]["validation"] = {"fraction": 0.25}
    return recipe


def test_two_ingredients_give_four_cocktails_under_two_budgets(both, write):
    plan = cocktail_plan(write(both), targets=["sign"], seeds=2)
    assert plan.tried == {"sign": (frozenset(), frozenset({"echo"}))}
    labels = {arm.label for arm in plan.arms}
    assert labels == {
        "additive-sign", "additive-echo", "additive-echo+sign", "additive-sign-longer", "fixed-sign", "fixed-echo",
        "fixed-echo+sign",
    }  # fmt: skip
    assert plan.seeds == (0, 1) and plan.control_seeds == (2, 3) and plan.general == ("mark",)
    variants = {variant.name: variant.recipe for variant in plan.sweep.variants}
    assert set(variants) == {f"seed={seed},split={split}" for seed in range(4) for split in ("test", "validation")}
    assert variants["seed=1,split=validation"].score.split == "validation" and variants["seed=1,split=test"].seed == 1
    control = variants["seed=3,split=test"].steps
    assert {step.tasks for step in control.values()} == {("sign",)} and plan.trainings == 2 * len(
        set(plan.arms.values())
    ) + 2 * 2
    longer = variants["seed=0,split=test"].steps[plan.arms[Arm(frozenset({"sign"}), "additive", longer=True)]]
    mixed = variants["seed=0,split=test"].steps[plan.arms[Arm(frozenset({"sign", "echo"}), "additive")]]
    assert longer.tasks == ("sign",) and longer.training.examples == mixed.training.examples == 24
    assert longer.training.steps is None and mixed.training.learning_rate == 1e-2


def sources(**numbers):
    return {name: Source(name, 100, tokens, examples) for name, (tokens, examples) in numbers.items()}


def test_the_additive_budget_is_the_sum_of_its_parts():
    of = sources(a=(2.0, 50.0), b=(5.0, 80.0), c=(10.0, 20.0))
    assert _draws(Arm(frozenset("ab"), "additive"), of) == {"a": 50.0, "b": 80.0}
    assert _draws(Arm(frozenset("a"), "additive", longer=True), of) == {"a": 150.0}


@pytest.mark.parametrize("cocktail", ["a", "b", "c", "ab", "bc", "abc"])
def test_the_fixed_budget_is_the_same_answer_tokens_within_one_example(cocktail):
    of = sources(a=(2.0, 50.0), b=(5.0, 80.0), c=(10.0, 20.0))
    draws = _draws(Arm(frozenset(cocktail), "fixed"), of)
    mixture = Mixture(
        dict.fromkeys(draws, 100), Weights(policy="weights", weights=draws), 0, round(sum(draws.values()))
    )
    counts = Counter(mixture.names[task] for task in mixture.draw(0, len(mixture))[:, 0])
    tokens = sum(count * of[name].answer_tokens for name, count in counts.items())
    assert abs(tokens - (2 * 50 + 5 * 80 + 10 * 20) / 3) <= max(of[name].answer_tokens for name in cocktail)


def test_an_ingredient_of_no_weight_leaves_the_order_of_the_target_as_it_is():
    alone = Mixture({"t": 30}, Weights(policy="weights", weights={"t": 30.0}), 7, 60).draw(0, 60)
    beside = Mixture({"t": 30, "x": 30}, Weights(policy="weights", weights={"t": 30.0, "x": 0.0}), 7, 60).draw(0, 60)
    assert (alone == beside).all()


def test_the_target_as_its_own_ingredient_is_two_passes_over_it():
    twice = Mixture({"t": 30, "t again": 30}, Weights(policy="weights", weights={"t": 30.0, "t again": 30.0}), 7, 60)
    rows = np.bincount(twice.draw(0, 60)[:, 1], minlength=30)
    two_passes = np.bincount(Mixture({"t": 30}, Proportional(), 7, 60).draw(0, 60)[:, 1], minlength=30)
    assert (rows == 2).all() and (two_passes == 2).all()


def test_arms_that_draw_the_same_are_trained_once(both, write):
    both["steps"]["joint"]["training"] |= {"steps": 2}
    plan = cocktail_plan(write(both), targets=["sign"], tasks=["sign", "echo"], budgets=["additive"], control=False)
    assert len(set(plan.arms.values())) == len(plan.arms) == 4  # alone, echo (also all without sign), both, longer
    assert not plan.control_seeds and plan.trainings == 12


def test_a_cap_counts_and_many_passes_are_told(both, write):
    both["steps"]["joint"]["training"] |= {"epochs": 10}
    del both["steps"]["joint"]["training"]["steps"]
    plan = cocktail_plan(write(both), targets=["sign"], cap=5, budgets=["additive"])
    assert plan.sources["sign"].examples == 50 and plan.sources["sign"].rows > 10
    assert any("sign has" in warning and "times" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (None, {"targets": ["sing"]}, "Did you mean 'sign'"),
        (None, {"targets": ["mark"]}, "no ingredient"),
        ("validation", {"targets": ["sign"]}, "no validation rows"),
        ("test", {"targets": ["sign"]}, "no test rows"),
        (None, {"targets": ["sign"], "tasks": ["sign"]}, "Two tasks or more"),
    ],
)
def test_what_cannot_be_studied_is_told(both, write, change, options, message):
    if change:
        del both["tasks"]["sign"][change]
    with pytest.raises(MultituneError, match=message):
        cocktail_plan(write(both), **options)
