"""From a recipe to the runs of a learning curve: nested budgets, starting models, and every recipe that has none."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneError
from multitune.recipes.learning_curve import Budget, Curve, budgets_of, learning_curve_plan
from multitune.recipes.schema import ScoreStep, TrainStep
from multitune.tasks.bad_rows import BadRows
from multitune.tasks.prompting import prompted_examples, resolve

BUDGETS = budgets_of("4,25%,all")


@pytest.fixture
def two_stages(recipe):
    """The recipe with a stage 1 on echo, and sign to be learned after it."""
    joint = recipe["steps"].pop("joint")
    recipe["tasks"]["sign"]["held_out"] = True
    recipe["steps"] = {
        "instruct": {**joint, "adapt": "full"},
        "few": {**joint, "model": "instruct", "adapt": "full", "tasks": ["echo"]},
    }
    return recipe


def test_budgets_are_numbers_shares_and_all():
    names = [budget.name for budget in budgets_of("10, 1%,.5%,all")]
    assert names == ["10", "1%", ".5%", "all"]
    ten, percent, half, everything = budgets_of("10,1%,.5%,all")
    assert (percent.of(2999), percent.of(60), half.of(2999)) == (29, 1, 14)
    assert (ten.of(2999), ten.of(7), everything.of(60), Budget("33%", share=0.33).of(100)) == (10, 7, 60, 33)


@pytest.mark.parametrize("text", ["0", "ten", "1.5", "0%", "101%", "", "10,,20", "-3", "10,10"])
def test_what_is_no_budget_is_told(text):
    with pytest.raises(MultituneError, match=r"is no budget|listed twice"):
        budgets_of(text)


def test_every_start_learns_every_target_from_every_budget(two_stages, write):
    plan = learning_curve_plan(write(two_stages), tasks=["sign", "mark"][:1], budgets=BUDGETS, seeds=2)
    assert plan.name == "few" and [curve.label for curve in plan.curves] == ["base", "instruct"]
    assert plan.targets == {"sign": 24} and [budget.name for budget in plan.budgets] == ["4", "25%", "all"]
    assert plan.trainings == 12 and len(plan.sweep.variants) == 8
    variants = {variant.name: variant.recipe for variant in plan.sweep.variants}
    small = variants["budget=25percent,seed=1"]
    assert small.seed == 1 and small.score is False and small.tasks["sign"].train.rows == 6
    assert not small.tasks["sign"].held_out
    assert small.steps["instruct"].tasks == ("echo",)  # stage 1 never sees a target
    steps = {name: step for name, step in small.steps.items() if name != "instruct"}
    assert [(step.model, step.tasks) for step in steps.values() if isinstance(step, TrainStep)] == [
        ("base", ("sign",)),
        ("instruct", ("sign",)),
    ]
    scored = small.steps[plan.scored[Curve("instruct"), "sign"]]
    assert isinstance(scored, ScoreStep) and scored.model == "instruct-sign" and scored.tasks == ("sign",)
    zero = variants["budget=0,seed=0"].steps
    assert {step.model for step in zero.values() if isinstance(step, ScoreStep)} == {"base", "instruct"}


def test_a_smaller_budget_is_the_beginning_of_a_larger_one(two_stages, write):
    plan = learning_curve_plan(write(two_stages), tasks=["sign"], budgets=budgets_of("4,10,all"), starts=["base"])
    rows = {}
    for variant in plan.sweep.variants[1:]:
        task = resolve(variant.recipe.tasks["sign"], variant.recipe.folder)
        found = prompted_examples(task, "train", variant.recipe.folder, templates="first", bad_rows=BadRows())
        rows[variant.values["budget"]] = [one.example.id for one in found]
    assert rows["4"] == rows["10"][:4] and rows["10"] == rows["all"][:10] and len(rows["all"]) == 24


def test_together_with_one_target_is_that_target_alone(recipe, write):
    plan = learning_curve_plan(write(recipe), tasks=["sign"], budgets=BUDGETS, together=True)
    steps = plan.sweep.variants[1].recipe.steps
    alone, both = (step for step in steps.values() if isinstance(step, TrainStep))
    assert alone == both
    plan = learning_curve_plan(write(recipe), tasks=["sign", "echo"], budgets=BUDGETS, together=True)
    trained = [step.tasks for step in plan.sweep.variants[1].recipe.steps.values() if isinstance(step, TrainStep)]
    assert trained == [("sign",), ("echo",), ("sign", "echo")] and plan.trainings == 9


def test_a_budget_beyond_the_rows_is_told(recipe, write):
    plan = learning_curve_plan(write(recipe), tasks=["sign"], budgets=budgets_of("10,500"))
    assert plan.notes == ("sign has 24 rows: of a budget of 500 it uses all it has.",)


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({}, {"tasks": ["sing"]}, "Did you mean 'sign'"),
        ({}, {"tasks": ["mark"]}, "'mark' has no train rows"),
        ({}, {"tasks": ["sign"], "step": "fow"}, "no train step 'fow'"),
        ({}, {"tasks": ["sign"], "starts": ["few"]}, "'few' is no model to start from"),
        ({}, {"tasks": ["sign"], "starts": ["other"]}, "'other' is no model to start from"),
        ({"instruct": ["sign", "echo"]}, {"tasks": ["sign"]}, "was trained on the target 'sign'"),
        ({"test": {"fraction": 0.2}}, {"tasks": ["sign"]}, "cuts its test rows from its training rows"),
    ],
)
def test_what_cannot_be_learned_is_told(two_stages, write, change, options, message):
    if "instruct" in change:
        two_stages["tasks"]["sign"]["held_out"] = False
        two_stages["steps"]["instruct"]["tasks"] = change["instruct"]
    if "test" in change:
        two_stages["tasks"]["sign"]["test"] = change["test"]
    with pytest.raises(MultituneError, match=message):
        learning_curve_plan(write(two_stages), budgets=BUDGETS, **options)
