"""Soft prompts in a run: sized, trained at two rates, scored, and found again on the disk."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from multitune.models.loading import load_saved
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan
from multitune.scoring.scoreboard import Scoreboard
from tests.models.test_tuners import output_of


@pytest.mark.parametrize(
    "adapt",
    [
        {"method": "ept", "num_virtual_tokens": 4, "r": 2, "max_length": 16, "n_spaces": 2, "init": "vocabulary"},
        {"method": "dept", "budget": 3000, "max_length": 16},
        {"method": "mpt", "num_virtual_tokens": 4},
    ],
    ids=lambda adapt: adapt["method"],
)
def test_a_run_trains_and_scores_with_a_prompt(recipe, write, tmp_path, adapt):
    recipe["steps"]["joint"] |= {"adapt": adapt}
    recipe["steps"]["joint"]["training"] |= {"steps": 4, "learning_rate": 1e-4, "prompt_learning_rate": 0.5}
    loaded = load_recipe(write(recipe))
    (node,) = plan(loaded).nodes
    run(loaded, tmp_path / "run")
    place = tmp_path / "run" / "steps" / "joint"
    assert json.loads((place / "artifact.json").read_text())["trainable_parameters"] == node.trainable
    rows = Scoreboard.load(tmp_path / "run" / "scoreboard.parquet").rows
    assert {row["task"] for row in rows if row["step"] == "joint"} == {"sign", "echo", "mark"}
    saved = {name.split(".")[-1]: t for name, t in load_file(place / "model/adapter_model.safetensors").items()}
    if adapt["method"] == "mpt":
        assert json.loads((place / "model" / "adapter_config.json").read_text())["tasks"] == ["sign", "echo"]
    else:
        assert saved["offset_B"].any()
        assert saved["offset_B"].abs().max() < 1e-3
    assert saved["vectors"].abs().max() > 0.3
    assert output_of(load_saved(place / "model").model.eval()).isfinite().all()


def test_an_option_of_another_prompt_is_refused(recipe, write):
    recipe["steps"]["joint"] |= {"adapt": {"method": "dept", "n_spaces": 2}}
    with pytest.raises(Exception, match="The method 'dept' has no option 'n_spaces'"):
        load_recipe(write(recipe))
