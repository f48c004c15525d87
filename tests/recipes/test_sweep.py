"""Axes become variants: whole recipes, checked before anything runs, with names that people can read."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.loading import load, load_recipe
from multitune.recipes.schema import Recipe
from multitune.recipes.sweep import Sweep

MIXTURES = {"proportional": {"policy": "proportional"}, "equal": {"policy": "equal"}}


@pytest.fixture
def swept(recipe):
    recipe["sweep"] = {"seed": [0, 1], "steps.joint.mixture": MIXTURES}
    return recipe


def test_the_product_of_the_axes_gives_plain_recipes(swept, write):
    sweep = load(write(swept))
    assert isinstance(sweep, Sweep)
    assert [variant.name for variant in sweep.variants] == [
        "seed=0,mixture=proportional",
        "seed=0,mixture=equal",
        "seed=1,mixture=proportional",
        "seed=1,mixture=equal",
    ]
    last = sweep.variants[-1]
    assert last.values == {"seed": "1", "mixture": "equal"}
    assert (last.recipe.seed, last.recipe.steps["joint"].mixture.policy) == (1, "equal")
    del swept["sweep"]
    swept["seed"], swept["steps"]["joint"]["mixture"] = 1, {"policy": "equal"}
    assert last.recipe == load_recipe(write(swept))


def test_axes_can_be_set_added_and_switched_off(swept, write):
    path = write(swept)
    assert len(load(path, ["sweep.seed=[0]"]).variants) == 2
    added = load(path, ["sweep.steps.joint.training.learning_rate=[1e-3, 1e-4]", "sweep.seed=[0]"])
    assert added.variants[-1].name == "seed=0,mixture=equal,learning_rate=0.0001"
    assert added.variants[-1].recipe.steps["joint"].training.learning_rate == 1e-4
    assert len(load(path, ["sweep.steps.joint.mixture.equal={policy: capped, cap: 3}"]).variants) == 4
    assert isinstance(load(path, ["sweep=null"]), Recipe)


def test_an_axis_may_be_added_to_a_recipe_without_any(recipe, write):
    assert [one.recipe.seed for one in load(write(recipe), ["sweep.seed=[5, 7]"]).variants] == [5, 7]


def test_axes_are_named_by_as_little_of_their_keys_as_tells_them_apart(recipe, write):
    recipe["steps"]["second"] = dict(recipe["steps"]["joint"])
    recipe["sweep"] = {
        "steps.joint.training.learning_rate": [1e-3, 2e-3],
        "steps.second.training.learning_rate": [1e-3],
        "steps.joint.training.batch_size": [4],
    }
    first = load(write(recipe)).variants[0]
    assert first.name == "joint.training.learning_rate=0.001,second.training.learning_rate=0.001,batch_size=4"


def test_values_that_no_folder_can_be_called_get_a_name_that_can(recipe, write, data):
    recipe["sweep"] = {"tasks.echo.train.path": ["data/echo/train.jsonl", "data/echo/test.jsonl"]}
    names = [variant.name for variant in load(write(recipe)).variants]
    assert names == ["path=data-echo-train.jsonl", "path=data-echo-test.jsonl"]


def test_mistakes_name_the_value_and_its_line_once(swept, write):
    swept["sweep"]["steps.joint.mixture"] = {"good": {"policy": "equal"}, "bad": {"policy": "equall"}}
    path = write(swept)
    with pytest.raises(MultituneErrors) as error:
        load(path)
    (only,) = error.value.errors
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "bad:" in text)
    assert only.where.startswith(f"{path}:{line}, sweep.steps.joint.mixture.bad, steps.joint.mixture")
    assert "Did you mean 'equal'" in only.what


@pytest.mark.parametrize(
    ("axes", "what"),
    [
        ({"steps.jiont.mixture": MIXTURES}, "Did you mean 'joint'"),
        ({"steps.joint.training.learning_rat": [1e-3]}, "Did you mean 'learning_rate'"),
        ({"sed": [1, 2]}, "Did you mean 'seed'"),
        ({"seed": 3}, "has no values"),
        ({"seed": []}, "has no values"),
        ({"seed": [1, 1]}, "the value '1' twice"),
        ({"steps.joint.mixture": [{"policy": "equal"}]}, "need names"),
        ({"steps.joint.mixture": MIXTURES, "steps.joint.mixture.policy": ["equal"]}, "set the same place"),
        ([1, 2], "maps keys of the recipe"),
    ],
)
def test_axes_that_mean_nothing_are_refused(recipe, write, axes, what):
    recipe["sweep"] = axes
    with pytest.raises(MultituneError) as error:
        load(write(recipe))
    assert what in str(error.value)
    assert "recipe.yaml:" in str(error.value)


def test_an_override_that_an_axis_would_hide_is_refused(swept, write):
    for assignment in ("seed=3", "steps.joint.mixture.policy=equal"):
        with pytest.raises(MultituneError, match="has the last word"):
            load(write(swept), [assignment])
    assert load(write(swept), ["steps.joint.training.steps=2"]).variants[0].recipe.steps["joint"].training.steps == 2


def test_many_variants_need_a_word(recipe, write):
    recipe["sweep"] = {"seed": [*range(5)], "steps.joint.training.steps": [*range(1, 6)]}
    with pytest.raises(MultituneError) as error:
        load(write(recipe))
    assert "expands to 25 runs (5 seed x 5 steps)" in error.value.what
    assert "--set 'sweep.seed=[...]'" in error.value.mend
    assert len(load(write(recipe), many=True).variants) == 25
    assert len(load(write(recipe), ["sweep.seed=[0, 1, 2, 3]"]).variants) == 20


def test_one_run_is_not_many(swept, write):
    with pytest.raises(MultituneError, match="is a sweep"):
        load_recipe(write(swept))


def test_suites_can_be_an_axis(recipe, write, data):
    import yaml

    tasks = recipe["tasks"]
    for name in ("sign", "echo"):
        (data / f"{name}.yaml").write_text(yaml.safe_dump({"tasks": {name: tasks[name]}}))
    recipe["tasks"] = "sign.yaml"
    recipe["sweep"] = {"tasks": ["sign.yaml", "echo.yaml"]}
    assert [list(one.recipe.tasks) for one in load(write(recipe)).variants] == [["sign"], ["echo"]]
