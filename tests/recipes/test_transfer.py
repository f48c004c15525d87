"""From a recipe to one training per task: the same settings and length, and every recipe that cannot be so."""

from __future__ import annotations

import pytest
import yaml

from multitune.errors import MultituneError
from multitune.recipes.loading import load_recipe
from multitune.recipes.schema import Recipe
from multitune.recipes.transfer import steps_of_groups, transfer_plan


def test_every_task_is_trained_alone_for_the_same_length_and_scored_on_all(recipe, write):
    plan = transfer_plan(write(recipe), together=True)
    assert dict(plan.alone) == {"sign": "on-sign", "echo": "on-echo"} and plan.columns == ("sign", "echo", "mark")
    assert plan.recipe.steps["on-sign"].tasks == ("sign",)
    assert plan.recipe.steps["on-sign"].training.steps == plan.recipe.steps["on-echo"].training.steps == 3
    pair = plan.recipe.steps[plan.together["sign", "echo"]]
    assert pair.tasks == ("sign", "echo") and pair.training.steps == 6 and pair.mixture.policy == "equal"
    assert plan.length == "3 optimiser steps of 4 rows"


def test_the_generated_recipe_survives_the_way_to_another_process(recipe, write):
    recipe["score"] = False
    generated = transfer_plan(write(recipe), together=True).recipe
    sent = generated.model_dump(mode="json", exclude_unset=True, exclude={"folder"})
    assert Recipe.model_validate({**sent, "folder": generated.folder}) == generated


def test_epochs_become_the_examples_of_the_smallest_task(recipe, write):
    recipe["tasks"]["echo"]["train"] = {"path": "data/echo/train.jsonl", "rows": 10}
    recipe["steps"]["joint"]["training"] |= {"epochs": 2}
    del recipe["steps"]["joint"]["training"]["steps"]
    plan = transfer_plan(write(recipe), together=False)
    for step in plan.recipe.steps.values():
        assert (step.training.epochs, step.training.examples) == (None, 20)
    assert "2 epochs of the smallest task, echo" in plan.length


def test_settings_that_name_tasks_follow_them(recipe, write):
    recipe["steps"]["joint"]["training"]["task_weights"] = {"sign": 2.0}
    recipe["steps"]["joint"]["mixture"] = {"policy": "weights", "weights": {"sign": 1, "echo": 2}}
    plan = transfer_plan(write(recipe), together=False)
    assert plan.recipe.steps["on-echo"].training.task_weights == {}
    assert plan.recipe.steps["on-sign"].training.task_weights == {"sign": 2.0}


@pytest.mark.parametrize("groups", [(("sign",), ("echo",)), (("sign", "echo"),)])
@pytest.mark.parametrize("adapt", ["full", "lora", {"method": "lora", "r": 2}])
def test_the_suggested_steps_can_be_pasted(recipe, write, groups, adapt):
    recipe["steps"]["joint"] |= {"mixture": {"policy": "equal"}, "adapt": adapt}
    path = write(recipe)
    plan = transfer_plan(path, together=False)
    snippet = yaml.safe_load(steps_of_groups(plan, groups))
    pasted = load_recipe(write(recipe | snippet))
    assert [step.tasks for step in pasted.steps.values()] == list(groups)
    assert all("method" in step.get("adapt", {"method": "lora"}) for step in snippet["steps"].values())
    for step in pasted.steps.values():
        assert step.adapt == plan.step.adapt and step.training == plan.step.training
        assert step.mixture.policy == ("equal" if len(groups) == 1 else "proportional")


def test_other_tasks_than_the_named_ones_are_columns(recipe, write):
    for name in ("third", "fourth"):
        recipe["tasks"][name] = recipe["tasks"]["echo"]
    plan = transfer_plan(write(recipe), tasks=["fourth", "sign"], together=False)
    assert plan.columns == ("fourth", "sign", "echo", "mark", "third")


def one_task(recipe):
    recipe["tasks"]["echo"] |= {"held_out": True}


def no_test_rows(recipe):
    del recipe["tasks"]["echo"]["test"]


def other_steps(recipe):
    recipe["steps"]["look"] = {"do": "score", "model": "joint"}


def no_train_step(recipe):
    recipe["steps"] = {"look": {"do": "score", "model": "base"}}


def a_chain(recipe):
    recipe["steps"]["joint"]["export"] = "merged"
    recipe["steps"]["later"] = {"model": "joint", "training": {"steps": 1}}


def a_sweep(recipe):
    recipe["sweep"] = {"seed": [0, 1]}


def nothing(recipe):
    pass


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (one_task, {}, "there is 1 that trains: sign"),
        (nothing, {"tasks": ["sign"]}, "there is 1 that trains"),
        (nothing, {"tasks": ["sign", "ecko"]}, "There is no task 'ecko'. Did you mean 'echo'?"),
        (nothing, {"tasks": ["sign", "mark"]}, "'mark' is held out"),
        (no_test_rows, {}, "no rows to score echo on"),
        (other_steps, {}, "joint .do: train., look .do: score."),
        (other_steps, {"step": "look"}, "it is do: score"),
        (other_steps, {"step": "jiont"}, "Did you mean 'joint'?"),
        (no_train_step, {}, "the recipe's steps are: look"),
        (a_chain, {"step": "later"}, "starts from 'joint'"),
        (a_sweep, {}, "The recipe is a sweep"),
    ],
)
def test_what_cannot_be_measured_is_told(recipe, write, change, options, message):
    change(recipe)
    with pytest.raises(MultituneError, match=message):
        transfer_plan(write(recipe), **{"together": False} | options)


def test_an_encoder_is_refused(recipe, write, tmp_path):
    recipe["model"] = {"name": recipe["model"], "form": "encoder"}
    del recipe["tasks"]["echo"]
    recipe["tasks"]["sign2"] = recipe["tasks"]["sign"]
    with pytest.raises(MultituneError, match="one head per task"):
        transfer_plan(write(recipe), together=False)
