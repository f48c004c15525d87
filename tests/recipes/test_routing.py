"""Routing by task in a run: every row trains and is scored by its own task's mixture, packed or not."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from multitune.errors import MultituneError
from multitune.models.loading import load_saved
from multitune.models.tuners.mhr_tasks import export_lora
from multitune.models.tuners.task_ids import set_tasks
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan
from multitune.scoring.scoreboard import Scoreboard
from tests.models.test_tuners import output_of


@pytest.fixture
def routed(recipe):
    recipe["steps"]["joint"] |= {"adapt": {"method": "mhr", "n_splits": 4, "n_skills": 3, "r": 2}}
    recipe["steps"]["joint"]["training"] |= {"steps": 6, "learning_rate": 0.01}
    return recipe


@pytest.mark.parametrize("pack", ["always", "never"])
def test_a_run_routes_by_the_names_of_its_tasks(routed, write, tmp_path, pack):
    routed["steps"]["joint"]["training"]["pack"] = pack
    loaded = load_recipe(write(routed))
    (node,) = plan(loaded).nodes
    run(loaded, tmp_path / "run")
    place = tmp_path / "run" / "steps" / "joint"
    assert json.loads((place / "artifact.json").read_text())["trainable_parameters"] == node.trainable
    assert json.loads((place / "model" / "adapter_config.json").read_text())["tasks"] == ["sign", "echo"]
    rows = Scoreboard.load(tmp_path / "run" / "scoreboard.parquet").rows
    assert {row["task"] for row in rows if row["step"] == "joint"} == {"sign", "echo", "mark"}

    logits = {
        name: tensor for name, tensor in load_file(place / "model/adapter_model.safetensors").items() if "Z" in name
    }
    moved = max(float(tensor.abs().max()) for tensor in logits.values())
    assert moved > 0.5, "at the modules' learning rate they could have moved by 0.06"

    model = load_saved(place / "model").model.eval()
    answers = {}
    for task in ("sign", "echo", "mark"):
        set_tasks(model, [task])
        answers[task] = output_of(model)
    assert not answers["sign"].equal(answers["echo"])
    export_lora(model, tmp_path / "sign", "sign")
    plain = load_saved(tmp_path / "sign").model.eval()
    assert (output_of(plain) - answers["sign"]).abs().max() < 1e-4


def test_a_routing_rate_is_a_setting(routed, write, tmp_path):
    routed["steps"]["joint"]["training"]["routing_learning_rate"] = 1e-5
    run(load_recipe(write(routed)), tmp_path / "run")
    saved = load_file(tmp_path / "run/steps/joint/model/adapter_model.safetensors")
    assert max(float(tensor.abs().max()) for name, tensor in saved.items() if "Z" in name) < 2e-3


def test_annealed_mixtures_end_at_the_average_and_are_saved_so(routed, write, tmp_path):
    routed["steps"]["joint"]["training"] |= {"routing_annealing_steps": 3}
    run(load_recipe(write(routed)), tmp_path / "run")
    place = tmp_path / "run/steps/joint/model"
    saved = load_file(place / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in saved.items() if "Z" in name)
    model = load_saved(place).model.eval()
    set_tasks(model, ["sign"])
    known = output_of(model)
    set_tasks(model, ["never trained"])
    assert output_of(model).equal(known)


@pytest.mark.parametrize(
    ("adapt", "training", "message"),
    [
        ("lora", {"routing_annealing_steps": 2}, "trains no mixtures"),
        ({"method": "mhr", "n_splits": 4, "router": "private"}, {"routing_annealing_steps": 2}, "trains no mixtures"),
        (
            {"method": "mhr", "n_splits": 4},
            {"routing_annealing_steps": 2, "eval_steps": 2, "load_best_model_at_end": True},
            "Annealed mixtures end at the last step",
        ),
    ],
)
def test_annealing_that_cannot_be_is_refused_before_anything_is_read(routed, write, adapt, training, message):
    routed["steps"]["joint"]["adapt"] = adapt
    routed["steps"]["joint"]["training"] |= training
    with pytest.raises(MultituneError, match=message):
        load_recipe(write(routed))


def test_annealing_longer_than_the_training_is_refused(routed, write, tmp_path):
    routed["steps"]["joint"]["training"]["routing_annealing_steps"] = 7
    with pytest.raises(MultituneError, match="last 7 steps of a training of 6"):
        run(load_recipe(write(routed)), tmp_path / "run")
