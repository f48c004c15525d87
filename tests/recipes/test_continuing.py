"""A step that trains the adapter of another step further."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan

MHR = {"method": "mhr", "n_splits": 4, "n_skills": 3, "r": 2}


def chained(recipe, first, second, **changes):
    """The recipe's own step on the task sign, and one that goes on with its adapter on echo."""
    training = recipe["steps"]["joint"]["training"] | {"steps": 4, "learning_rate": 0.01}
    recipe["steps"] = {
        "joint": {"do": "train", "tasks": ["sign"], "adapt": first, "training": training},
        "few": {"do": "train", "model": "joint", "tasks": ["echo"], "adapt": second, "training": training} | changes,
    }
    return recipe


def adapter_in(folder: Path) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def ran(recipe, write, tmp_path):
    loaded = load_recipe(write(recipe))
    planned = {node.name: node for node in plan(loaded).nodes}
    run(loaded, tmp_path / "run")
    steps = tmp_path / "run" / "steps"
    facts = json.loads((steps / "few" / "artifact.json").read_text())
    assert facts["trainable_parameters"] == planned["few"].trainable
    return steps / "joint" / "model", steps / "few" / "model", planned


def test_an_adapter_goes_on_where_it_ended(recipe, write, tmp_path):
    joint, few, planned = ran(chained(recipe, {"method": "lora", "r": 2}, "continue"), write, tmp_path)
    assert planned["few"].method == "lora"
    before, after = adapter_in(joint), adapter_in(few)
    assert set(before) == set(after)
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 4 * 2 * 0.01, "four steps of AdamW from where the first training ended"
    config = json.loads((few / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert "method lora" in (few / "README.md").read_text()


def test_a_mixture_learns_a_new_task_and_keeps_the_old_one(recipe, write, tmp_path):
    joint, few, planned = ran(chained(recipe, MHR, {"method": "continue", "trains": "routing"}), write, tmp_path)
    assert planned["few"].method == "mhr"
    assert json.loads((few / "adapter_config.json").read_text())["tasks"] == ["sign", "echo"]
    before, after = adapter_in(joint), adapter_in(few)
    for name in before:
        kept = after[name][:1] if name.endswith("mhr_Z") else after[name]
        assert kept.equal(before[name]), name
    assert max(float(after[name][1].abs().max()) for name in after if name.endswith("mhr_Z")) > 0.1


def test_modules_and_routing_go_on_together(recipe, write, tmp_path):
    joint, few, _ = ran(chained(recipe, MHR, "continue"), write, tmp_path)
    before, after = adapter_in(joint), adapter_in(few)
    assert any(not after[name].equal(before[name]) for name in before if name.endswith("mhr_B"))


def test_the_average_of_the_modules_goes_on_as_plain_lora(recipe, write, tmp_path):
    _, few, planned = ran(chained(recipe, MHR, {"method": "continue", "trains": "average"}), write, tmp_path)
    assert planned["few"].method == "lora"
    config = json.loads((few / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 1.0)


def test_what_goes_on_can_go_on_again_and_be_merged(recipe, write, tmp_path):
    recipe = chained(recipe, {"method": "lora", "r": 2}, "continue")
    recipe["steps"]["third"] = recipe["steps"]["few"] | {"model": "few", "tasks": ["sign"], "export": "merged"}
    run(load_recipe(write(recipe)), tmp_path / "run")
    assert (tmp_path / "run/steps/third/model/model.safetensors").exists()


def test_of_a_budget_the_rank_is_known_with_the_model(recipe, write):
    first = {"method": "mhr", "n_splits": 4, "n_skills": 3, "budget": 4000}
    loaded = load_recipe(write(chained(recipe, first, {"method": "continue", "trains": "average"})))
    assert plan(loaded).nodes[1].trainable is None


@pytest.mark.parametrize(
    ("first", "second", "changes", "told"),
    [
        ("full", "continue", {}, "The model 'joint' has no adapter that could be trained further"),
        ({"method": "lora", "r": 2}, "continue", {"model": "base"}, "The model 'base' has no adapter"),
        ({"method": "adalora"}, "continue", {}, "type adalora cannot be trained further: its ranks are settled"),
        (
            {"method": "lora", "r": 2},
            {"method": "continue", "trains": "routing"},
            {},
            "type lora has no routing that could train alone",
        ),
        (
            MHR,
            {"method": "continue", "trains": "some"},
            {},
            "must be 'all', 'routing' or 'average', not 'some'",
        ),
        (MHR, {"method": "continue", "r": 4}, {}, "'continue' has no option 'r'"),
        (MHR, {"method": "continue", "budget": 0.1}, {}, "'continue' has no size that a budget could set"),
        ({"method": "lora", "r": 2}, {"method": "lora", "r": 2}, {}, "train the adapter itself further"),
    ],
)
def test_what_cannot_go_on_is_told_at_check(recipe, write, first, second, changes, told):
    with pytest.raises((MultituneError, MultituneErrors)) as caught:
        load_recipe(write(chained(recipe, first, second, **changes)))
    assert told in str(caught.value)


def test_steps_that_go_on_with_one_another_are_a_cycle(recipe, write):
    recipe = chained(recipe, "continue", "continue")
    recipe["steps"]["joint"]["model"] = "few"
    with pytest.raises((MultituneError, MultituneErrors), match="wait for one another"):
        load_recipe(write(recipe))


def test_tasks_with_modules_of_their_own_have_none_for_a_new_one(recipe, write, tmp_path):
    loaded = load_recipe(write(chained(recipe, MHR | {"router": "private"}, "continue")))
    with pytest.raises(MultituneError, match="a new task has none"):
        run(loaded, tmp_path / "run")
