"""What makes a node's work new, and what does not; what another run left in its folder."""

from __future__ import annotations

import json
import shutil

import pytest

from multitune.recipes.executor import run
from multitune.recipes.fingerprint import digest, model_fingerprint
from multitune.recipes.loading import load_recipe


@pytest.fixture
def go(recipe, write, tmp_path):
    """Run the recipe as it stands now into one folder; return what was worked on."""

    def go(*overrides):
        return list(run(load_recipe(write(recipe), overrides), tmp_path / "run").done)

    return go


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_a_model_is_known_by_its_bytes_wherever_it_lies(recipe, write, model_folder, tmp_path):
    before = model_fingerprint(load_recipe(write(recipe)))
    recipe["model"] = str(shutil.copytree(model_folder, tmp_path / "copy"))
    assert model_fingerprint(load_recipe(write(recipe))) == before
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_fingerprint(load_recipe(write(recipe))) != before


def test_training_settings_do_not_score_the_base_again(go, recipe):
    recipe["tasks"]["echo"] |= {"kind": "generate", "prompt": "{{ input }}", "target": "{{ target }}"}
    go()
    assert go("tasks.echo.train.rows=20", "tasks.echo.weight=2") == ["joint", "joint@score"]


def test_demonstrations_that_change_are_shown_anew(go, recipe, data):
    recipe["steps"] = {"few": {"do": "score", "shots": 2, "rows": 2, "tasks": ["sign"]}}
    recipe["score"] = False
    assert go() == ["few"]
    assert go() == []
    assert go("steps.few.demonstrations.seed=1") == ["few"]
    train = data / "data" / "sign" / "train.jsonl"
    train.write_text(train.read_text().replace("number 7", "number 70"))
    assert go("steps.few.demonstrations.seed=1") == ["few"]


def test_logging_settings_change_nothing(go):
    go()
    assert go("steps.joint.training.logging_steps=2", "steps.joint.training.save_steps=7") == []


def test_a_run_goes_on_from_its_own_resolved_recipe(go, recipe, tmp_path):
    go()
    copy = tmp_path / "elsewhere" / "recipe.yaml"
    copy.parent.mkdir()
    shutil.copy(tmp_path / "run" / "recipe.yaml", copy)
    assert run(load_recipe(copy), tmp_path / "run").done == ()


def test_checkpoints_of_other_settings_do_not_stay(go, recipe, tmp_path):
    stale = tmp_path / "run" / "steps" / "joint" / "checkpoints" / "checkpoint-900"
    go("score=false")
    stale.mkdir(parents=True)
    go("score=false", "steps.joint.training.steps=2")
    assert not stale.exists()


def test_rows_of_a_step_that_is_gone_leave_the_scoreboard(go, recipe, tmp_path):
    from multitune.scoring.scoreboard import Scoreboard

    recipe["steps"]["other"] = {**recipe["steps"]["joint"]}
    go()
    del recipe["steps"]["other"]
    assert go() == []
    steps = {row["step"] for row in Scoreboard.load(tmp_path / "run" / "scoreboard.parquet").rows}
    assert steps == {"base", "joint"}


def test_the_time_of_a_run_adds_up_and_is_left_alone_by_a_run_that_does_nothing(go, tmp_path):
    facts = tmp_path / "run" / "run.json"
    go()
    first = json.loads(facts.read_text())
    go()
    assert json.loads(facts.read_text()) == first
    go("score.rows=2")
    assert json.loads(facts.read_text())["seconds"] > first["seconds"]
