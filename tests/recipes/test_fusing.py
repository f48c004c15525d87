"""A fuse step leaves a file that is scored as any model; mistakes in it are told before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from multitune.decoding.fusion_file import load_fusion, read_fusion
from multitune.errors import MultituneError, MultituneErrors
from multitune.models.config import ModelConfig
from multitune.models.loading import load_backbone, load_saved, model_facts
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan
from multitune.recipes.scoring import score_model
from multitune.reporting.report import write_report
from multitune.reporting.run_folder import read_run
from multitune.scoring.score import ScoreConfig
from multitune.scoring.scoreboard import Scoreboard
from tests.small_llama import small_llama


@pytest.fixture(scope="session")
def large_folder(model_folder, tmp_path_factory) -> Path:
    """Another Llama with the words of the first."""
    folder = tmp_path_factory.mktemp("large")
    for file in model_folder.iterdir():
        if "token" in file.name:
            shutil.copy(file, folder)
    words = json.loads((model_folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(7)
    small_llama(words + 3, num_hidden_layers=3).save_pretrained(folder)
    return folder


@pytest.fixture
def fused(recipe, large_folder):
    """The recipe with two LoRA experts of its own model, and a large one that they lead."""
    training = {"steps": 2, "batch_size": 4, "max_length": 64, "learning_rate": 0.05, "logging_steps": 1}
    recipe["steps"] = {
        "fused": {"do": "fuse", "model": str(large_folder), "small": "base", "experts": ["a", "b"]},
        "a": {"tasks": ["sign"], "training": dict(training)},
        "b": {"tasks": ["echo"], "training": dict(training)},
        "sample": {"do": "score", "model": "fused", "rows": 2},
    }
    return recipe


def test_a_fuse_step_is_scored_after_its_experts(fused, write, tmp_path):
    out = tmp_path / "run"
    done = run(load_recipe(write(fused)), out).done
    assert set(done) == {"base@score", "a", "a@score", "b", "b@score", "fused", "fused@score", "sample"}
    assert run(load_recipe(write(fused)), out).done == ()
    rows = Scoreboard.load(out / "scoreboard.parquet").rows
    assert {row["task"] for row in rows if row["step"] == "fused"} == {"sign", "echo", "mark"}
    assert read_run(out).nodes[0] == "base"

    for task, rows_of_task in (("sign", 6), ("echo", 6), ("mark", 6)):
        lines = (out / "steps" / "fused" / "coefficients" / f"{task}.jsonl").read_text().splitlines()
        assert len(lines) == rows_of_task
        first = json.loads(lines[0])
        assert first["experts"] == ["a", "b"]
        assert all(len(alpha_T) == 2 for alpha_T in first["alphas"])
    page = write_report([out], out / "report.html").read_text()
    assert "Which expert led" in page
    assert "load_fusion" in page
    told = json.loads((out / "steps" / "fused" / "model" / "fusion.json").read_text())
    assert told["experts"] == {name: {"name": f"../../{name}/model"} for name in ("a", "b")}


def test_a_run_can_be_moved_and_its_fusion_scored_and_loaded(fused, write, tmp_path):
    fused["score"] = False
    run(load_recipe(write(fused)), tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    file = tmp_path / "moved" / "steps" / "fused" / "model" / "fusion.json"
    scores = score_model(str(file), tmp_path / "recipe.yaml", out=tmp_path / "out", seed=0, config=ScoreConfig(rows=2))
    assert {score.task for score in scores} == {"sign", "echo", "mark"}
    assert (tmp_path / "out" / "coefficients" / "echo.jsonl").exists()
    assert score_model(str(file.parent), tmp_path / "recipe.yaml", out=None, seed=0, config=ScoreConfig(rows=2))

    shared = load_fusion(file).model
    assert len(shared.roles) == 2  # the large model, and one small one for base and adapters
    places = {name: tmp_path / "moved" / "steps" / name / "model" for name in ("a", "b")}
    ids = torch.tensor([[40, 50, 60]])
    large = load_backbone(ModelConfig(name=fused["steps"]["fused"]["model"])).model(input_ids=ids).logits
    small = load_backbone(ModelConfig(name=fused["model"])).model(input_ids=ids).logits
    experts = [load_saved(place).model(input_ids=ids).logits for place in places.values()]
    alpha_S2 = torch.tensor(_alphas(shared, ids))
    words = small.shape[-1]
    wanted = large[..., :words] + sum(alpha_S2[:, t, None] * (one - small) for t, one in enumerate(experts))
    torch.testing.assert_close(shared(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)
    assert (alpha_S2 != 0).any()


def _alphas(fusion, ids):
    fusion.trace = []
    for end in range(1, ids.shape[1] + 1):
        fusion(input_ids=ids[:, :end], logits_to_keep=1)
    return [text.alpha_ST[0] for text in fusion.trace]


def test_a_merge_of_experts_leads_as_an_expert(fused, write, tmp_path):
    fused["score"] = False
    fused["steps"]["both"] = {"do": "merge", "method": "task_arithmetic", "models": ["a", "b"]}
    fused["steps"]["fused"]["experts"] = ["both"]
    assert set(run(load_recipe(write(fused)), tmp_path / "run").done) == {"a", "b", "both", "fused", "sample"}
    fusion = load_fusion(tmp_path / "run" / "steps" / "fused" / "model" / "fusion.json").model
    assert fusion.names == ["both"]
    assert len(fusion.roles) == 3


def test_a_changed_expert_redoes_the_fusion(fused, write, tmp_path):
    fused["score"] = False
    run(load_recipe(write(fused)), tmp_path / "run")
    fused["steps"]["b"]["training"]["learning_rate"] = 0.01
    done = run(load_recipe(write(fused)), tmp_path / "run").done
    assert set(done) == {"b", "fused", "sample"}
    done = run(load_recipe(write(fused), ["steps.fused.alpha=1.0"]), tmp_path / "run").done
    assert set(done) == {"fused", "sample"}


def test_a_step_of_one_model_per_task_brings_an_expert_of_each(fused, write, tmp_path):
    training = fused["steps"]["a"]["training"]
    fused["steps"] = {
        "fused": fused["steps"]["fused"] | {"experts": ["own"]},
        "own": {"tasks": "each", "training": training},
    }
    fused["score"] = False
    run(load_recipe(write(fused)), tmp_path / "run")
    assert list(read_fusion(tmp_path / "run/steps/fused/model/fusion.json").experts) == ["own.sign", "own.echo"]
    fused["steps"]["fused"]["alpha"] = [1.0]
    with pytest.raises(MultituneErrors, match="1 coefficients for 2 experts"):
        load_recipe(write(fused))
    fused["steps"]["fused"] |= {"alpha": 1.0, "small": "own"}
    with pytest.raises(MultituneErrors, match="no model 'own'"):
        load_recipe(write(fused))


def test_check_forecasts_the_fusion(fused, write, large_folder, model_folder):
    (told,) = plan(load_recipe(write(fused))).fusions
    large, small = (model_facts(ModelConfig(name=str(folder))) for folder in (large_folder, model_folder))
    assert (told.name, told.experts, told.alpha) == ("fused", 2, "dynamic (grid)")
    assert told.bytes == large.bytes + small.bytes  # both experts are adapters over the one small base
    assert told.parameters == large.parameters + 3 * small.parameters
    fused["steps"]["a"]["adapt"] = "full"
    fused["steps"]["fused"]["alpha"] = [1.0, 0.5]
    (told,) = plan(load_recipe(write(fused))).fusions
    assert told.bytes == large.bytes + 2 * small.bytes and told.alpha == "1, 0.5"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"small": None}, "no small base"),
        ({"experts": []}, "cannot be"),
        ({"experts": ["a", "a"]}, "'a' is given twice"),
        ({"experts": ["c"]}, "no model 'c'"),
        ({"small": "bse"}, "no model 'bse'. Did you mean 'base'"),
        ({"model": "some/where/else/nothing"}, "does not exist"),
        ({"ranges": [[2.0, 0.0]]}, "reversed"),
        ({"alpha": -1.0}, "below 0"),
        ({"alpha": "dinamic"}, "cannot be"),
        ({"alpha": [1.0]}, "1 coefficients for 2 experts"),
        ({"search": "joint", "experts": ["a", "b", "base"]}, "'base' is given twice"),
        ({"aplha": 1.0}, "Did you mean 'alpha'"),
    ],
)
def test_mistakes_of_a_fuse_step_are_told_at_once(fused, write, change, what):
    fused["steps"]["fused"].update(change)
    with pytest.raises(MultituneErrors) as caught:
        load_recipe(write(fused))
    told = [str(error) for error in caught.value.errors]
    assert any(what in one and "steps.fused" in one for one in told), told


def test_a_fusion_cannot_be_trained_and_steps_cannot_wait_for_each_other(fused, write):
    fused["steps"]["a"]["model"] = "fused"
    with pytest.raises(MultituneErrors, match="no model 'fused'"):
        load_recipe(write(fused))


def test_paths_of_models_are_relative_to_the_recipe(fused, write, data, large_folder):
    shutil.copytree(large_folder, data / "big")
    fused["steps"]["fused"]["model"] = "big"
    assert load_recipe(write(fused)).steps["fused"].model == str(data / "big")


def test_a_fusion_file_that_cannot_be_used_is_refused(model_folder, tmp_path):
    file = tmp_path / "fusion.json"
    file.write_text("{")
    with pytest.raises(MultituneError, match="not valid JSON"):
        read_fusion(file)
    file.write_text(json.dumps({"large": "a", "small": "b", "experts": {}}))
    with pytest.raises(MultituneError, match="experts"):
        read_fusion(file)
    place = str(model_folder)
    file.write_text(json.dumps({"large": place, "small": place, "experts": {"x": place}}))
    with pytest.raises(MultituneError, match="given twice, as large and as small"):
        load_fusion(file)
