"""Which nodes a recipe has, and in which order."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneErrors
from multitune.recipes.graph import ScoreNode, build
from multitune.recipes.loading import load_recipe


def names(recipe, write):
    return [node.name for node in build(load_recipe(write(recipe)))]


def test_the_base_and_every_model_are_scored_right_when_they_stand(recipe, write):
    recipe["steps"] = {"second": {"model": "first"}, "first": {"export": "merged"}}
    assert names(recipe, write) == ["base@score", "first", "first@score", "second", "second@score"]


def test_each_makes_one_arm_per_training_task_scored_on_its_own(recipe, write):
    recipe["steps"] = {"alone": {"tasks": "each"}}
    nodes = build(load_recipe(write(recipe)))
    assert [n.name for n in nodes] == ["base@score", "alone.sign", "alone.sign@score", "alone.echo", "alone.echo@score"]
    assert nodes[2].tasks == ("sign",)


def test_scoring_can_be_switched_off_and_asked_for(recipe, write):
    recipe["score"] = False
    recipe["steps"]["again"] = {"do": "score", "model": "joint", "rows": 2, "tasks": ["mark"]}
    nodes = build(load_recipe(write(recipe)))
    assert [n.name for n in nodes] == ["joint", "again"]
    assert isinstance(nodes[1], ScoreNode)
    assert (nodes[1].model, nodes[1].tasks, nodes[1].config.rows) == ("joint", ("mark",), 2)


def test_a_curve_is_one_score_for_every_number_of_shots(recipe, write):
    recipe["steps"]["few"] = {"do": "score", "curve": [0, 4], "tasks": ["sign"], "demonstrations": {"seed": 3}}
    nodes = build(load_recipe(write(recipe)))[-2:]
    assert [(n.name, n.config.shots, n.config.demonstrations.seed) for n in nodes] == [
        ("few@0-shot", 0, 3),
        ("few@4-shot", 4, 3),
    ]


@pytest.mark.parametrize(
    ("keys", "what"),
    [({"curve": [0, 1], "shots": 1}, "keep one of the two"), ({"curve": [1, 1]}, "twice"), ({"curve": [-1]}, "0")],
)
def test_a_curve_that_says_two_things_is_refused(recipe, write, keys, what):
    recipe["steps"]["few"] = {"do": "score", "tasks": ["sign"], **keys}
    with pytest.raises(MultituneErrors, match=what):
        load_recipe(write(recipe))


def test_a_step_can_start_from_the_model_of_one_task_alone(recipe, write):
    recipe["steps"] = {
        "further": {"model": "alone.sign", "tasks": ["echo"]},
        "alone": {"tasks": "each", "export": "merged"},
        "again": {"do": "score", "model": "alone.echo"},
    }
    assert names(recipe, write) == [
        "base@score",
        *("alone.sign", "alone.sign@score", "alone.echo", "alone.echo@score"),
        *("further", "further@score", "again"),
    ]


def test_a_model_that_no_step_leaves_is_told_with_the_nearest(recipe, write):
    recipe["steps"] = {"alone": {"tasks": "each", "export": "merged"}, "further": {"model": "alone.sgin"}}
    with pytest.raises(MultituneErrors, match=r"Did you mean 'alone\.sign'"):
        load_recipe(write(recipe))
