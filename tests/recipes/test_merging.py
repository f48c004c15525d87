"""A merge step leaves a model that plain transformers loads, is scored, and can be trained further."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from multitune.errors import MultituneErrors
from multitune.models.loading import load_saved
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.merge_search import candidates, search
from multitune.recipes.merging import merge_with_heads
from multitune.recipes.plan import plan
from multitune.reporting.report import write_report
from multitune.scoring.scoreboard import Scoreboard
from multitune.weights.config import MergeConfig

TRAINING = {"steps": 2, "batch_size": 4, "max_length": 48, "learning_rate": 0.02, "logging_steps": 1}


@pytest.fixture(scope="session")
def encoder_folder(model_folder, tmp_path_factory):
    """A BERT with random weights and the words of the small Llama."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def merged(recipe):
    """Two models of the base, one an adapter, and their merge."""
    recipe["steps"] = {
        "merged": {"do": "merge", "method": "task_arithmetic", "models": ["a", "b"], "parameters": {"lambda": 0.5}},
        "a": {"tasks": ["sign"], "adapt": {"method": "lora", "r": 2}, "training": dict(TRAINING)},
        "b": {"tasks": ["echo"], "adapt": "full", "training": dict(TRAINING)},
    }
    return recipe


@pytest.fixture
def arms(recipe, encoder_folder):
    """Encoders of one task each, and the merge of all of them with their heads."""
    task = recipe["tasks"]["sign"] | {"validation": "data/sign/test.jsonl"}
    recipe["model"] = str(encoder_folder)
    recipe["tasks"] = {"first": task, "second": task}
    recipe["steps"] = {
        "alone": {"tasks": "each", "adapt": "full", "training": dict(TRAINING)},
        "merged": {"do": "merge", "method": "task_arithmetic", "models": ["alone"]},
    }
    return recipe


def test_a_merge_is_the_base_and_the_weighted_task_vectors(merged, write, tmp_path):
    out = tmp_path / "run"
    done = run(load_recipe(write(merged)), out).done
    assert set(done) == {"base@score", "a", "a@score", "b", "b@score", "merged", "merged@score"}
    base = AutoModelForCausalLM.from_pretrained(merged["model"]).state_dict()
    adapted = load_saved(out / "steps" / "a" / "model").model.merge_and_unload().state_dict()
    whole = AutoModelForCausalLM.from_pretrained(out / "steps" / "b" / "model").state_dict()
    found = AutoModelForCausalLM.from_pretrained(out / "steps" / "merged" / "model").state_dict()
    for name, tensor in found.items():
        wanted = base[name] + 0.5 * (adapted[name] - base[name] + whole[name] - base[name])
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)
    rows = Scoreboard.load(out / "scoreboard.parquet").rows
    assert {row["task"] for row in rows if row["step"] == "merged"} == {"sign", "echo", "mark"}
    assert "## Scores" in (out / "steps" / "merged" / "model" / "README.md").read_text()
    assert "merged" in write_report([out], out / "report.html").read_text()
    assert run(load_recipe(write(merged)), out).done == ()


def test_what_a_merge_reads_decides_whether_it_is_done_again(merged, write, tmp_path):
    merged["score"] = False
    run(load_recipe(write(merged)), tmp_path / "run")
    done = run(load_recipe(write(merged), ["steps.merged.parameters.lambda=0.3"]), tmp_path / "run").done
    assert done == ("merged",)
    done = run(load_recipe(write(merged), ["steps.b.training.learning_rate=0.001"]), tmp_path / "run").done
    assert set(done) == {"b", "merged"}


def test_a_killed_merge_is_done_again(merged, write, tmp_path):
    merged["score"] = False
    run(load_recipe(write(merged)), tmp_path / "run")
    (tmp_path / "run" / "steps" / "merged" / "artifact.json").unlink()
    assert run(load_recipe(write(merged)), tmp_path / "run").done == ("merged",)


def test_a_merge_can_be_trained_further_scored_and_merged_again(merged, write, tmp_path):
    merged["score"] = False
    merged["steps"] |= {
        "more": {"model": "merged", "tasks": ["sign"], "adapt": "full", "training": dict(TRAINING)},
        "again": {"do": "merge", "method": "linear", "models": ["merged", "more"], "base": None},
        "sample": {"do": "score", "model": "again", "rows": 2},
    }
    done = run(load_recipe(write(merged)), tmp_path / "run").done
    assert set(done) == {"a", "b", "merged", "more", "again", "sample"}


def test_a_merged_encoder_keeps_the_head_of_every_task(arms, write, tmp_path, encoder_folder):
    out = tmp_path / "run"
    run(load_recipe(write(arms)), out)
    model = out / "steps" / "merged" / "model"
    heads = load_file(model / "heads.safetensors")
    for task in ("first", "second"):
        own = load_file(out / "steps" / f"alone.{task}" / "model" / "heads.safetensors")
        assert torch.equal(heads[f"{task}/weight"], own[f"{task}/weight"])
    assert [task.name for task in load_saved(model).tasks] == ["first", "second"]
    assert AutoModel.from_pretrained(model).config.model_type == "bert"
    rows = Scoreboard.load(out / "scoreboard.parquet").rows
    assert {row["task"] for row in rows if row["step"] == "merged"} == {"first", "second"}


def test_a_search_tries_every_candidate_on_validation_rows_and_merges_the_best(arms, write, tmp_path):
    arms["steps"]["merged"]["search"] = {"over": {"method": ["task_arithmetic", "ties"], "lambda": [0.0, 0.5, 1.0]}}
    out = tmp_path / "run"
    run(load_recipe(write(arms)), out)
    told = json.loads((out / "steps" / "merged" / "search.json").read_text())
    assert len(told["candidates"]) == 6
    best = max(told["candidates"], key=lambda each: each["quality"])
    assert told["best"] == best["name"]
    facts = json.loads((out / "steps" / "merged" / "artifact.json").read_text())
    assert facts["chosen"] == best["values"]
    rows = Scoreboard.load(out / "scoreboard.parquet").rows
    tried = {row["step"] for row in rows if "@" in row["step"]}
    assert tried == {f"merged@{each['name']}" for each in told["candidates"]}
    assert {row["split"] for row in rows if "@" in row["step"]} == {"validation"}
    assert not [path for path in (out / "steps" / "merged").iterdir() if path.name.startswith(".")]
    page = write_report([out], out / "report.html").read_text()
    assert "Which merge" in page
    assert run(load_recipe(write(arms)), out).done == ()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs"])
@pytest.mark.parametrize(
    "lines", [None, {"alpha": 0.2, "beta": 0.8}, {"alpha": "norm", "beta": 0.4, "outside": "deepest"}]
)
def test_candidates_in_place_are_the_merges_that_would_be_written(method, lines, model_folder, tmp_path):
    """Factors of one task vector share a pass over the weights; each leaves the weights of the merge with it alone."""
    folders = [tmp_path / name for name in "ab"]
    for number, folder in enumerate(folders):
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    told = {"method": method, "base": str(model_folder), "models": list(map(str, folders)), "lines": lines}
    config = MergeConfig.model_validate(told)
    written, seen = [], []

    def make(merge, out):
        written.append(out)
        return merge_with_heads(merge, out).lines_alpha

    def evaluate(backbone):
        seen.append({name: tensor.clone() for name, tensor in backbone.model.state_dict().items()})
        return []

    found = candidates(config, {"lambda": [0.0, 0.4, 1.5]})
    search(model_folder, found, make, load_saved, evaluate, tmp_path / "search")
    assert len(written) == 1 + (lines is not None and lines["alpha"] == "norm")
    for number, candidate in enumerate(found[1:], 1):
        merge_with_heads(candidate.config, tmp_path / f"alone-{number}")
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / f"alone-{number}").state_dict()
        for name, tensor in alone.items():
            torch.testing.assert_close(seen[number][name], tensor, atol=2e-6, rtol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in base.items())


def test_jobs_and_sweeps_merge_too(arms, write, tmp_path):
    from multitune.recipes.loading import load

    arms["sweep"] = {"steps.merged.parameters.lambda": [0.3, 0.6]}
    done = run(load(write(arms)), tmp_path / "run", jobs=2).done
    assert sum(one.startswith("merged (") for one in done) == 2
    assert sum(one == "alone.first" for one in done) == 1


def test_check_forecasts_the_merge(arms, write):
    planned = plan(load_recipe(write(arms)))
    (merge,) = planned.merges
    assert (merge.name, merge.method, merge.models) == ("merged", "task_arithmetic", 2)
    assert merge.bytes_to_read == 3 * merge.bytes_to_write > 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"method": "tie"}, "Did you mean 'ties'"),
        ({"method": "ties", "parameters": {"densty": 0.2}}, "Did you mean 'density'"),
        ({"parameters": {"lamda": 0.2}}, "Did you mean 'lambda'"),
        ({"models": ["a", "c"]}, "no model 'c'"),
        ({"models": ["a", "a"]}, "'a' is given twice"),
        ({"models": ["a", "base"]}, "'base' is among the models"),
        ({"models": []}, "needs either models or slices"),
        ({"base": None}, "needs the base model"),
        ({"base": "a"}, "cannot be the base of a merge"),
        ({"base": "some/where/nothing"}, "does not exist"),
        ({"method": "ties", "models": ["b", {"model": "a", "parameters": {"density": 1.5}}]}, "outside of 0 to 1"),
        ({"parmeters": {}}, "Did you mean 'parameters'"),
        ({"search": {"over": {"lamda": [0.1]}}}, "Did you mean 'lambda'"),
        ({"search": {"over": {"lambda": [0.1]}}}, "no task has any"),
        ({"search": {"over": {}}}, "cannot be"),
        ({"models": ["merged"]}, "wait for one another"),
        ({"lines": {"alpha": "norms"}}, "cannot be"),
    ],
)
def test_mistakes_of_a_merge_step_are_told_at_once(merged, write, change, what):
    merged["steps"]["merged"].update(change)
    with pytest.raises(MultituneErrors) as caught:
        load_recipe(write(merged))
    told = [str(error) for error in caught.value.errors]
    assert any(what in one and "steps.merged" in one for one in told), told


def test_adapters_without_a_sum_on_the_weights_are_refused_before_training(merged, write):
    merged["steps"]["a"]["adapt"] = "ia3"
    with pytest.raises(MultituneErrors, match="adapter of type ia3, which is no sum"):
        load_recipe(write(merged))
