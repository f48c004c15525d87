"""Encoders in a run: heads that belong to their tasks, also when a step trains further what another has left."""

from __future__ import annotations

import pytest
from safetensors.numpy import load_file

from multitune.errors import MultituneError
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan
from multitune.scoring.scoreboard import Scoreboard


@pytest.fixture(scope="session")
def encoder_folder(model_folder, tmp_path_factory):
    """A BERT with random weights and the tokenizer of the small Llama."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_a_chain_trains_the_heads_of_its_own_tasks_and_keeps_the_others(recipe, write, encoder_folder, tmp_path):
    task = recipe["tasks"]["sign"]
    training = {"steps": 2, "batch_size": 4, "max_length": 32, "learning_rate": 1e-2}
    recipe["model"] = str(encoder_folder)
    recipe["tasks"] = {"first": task, "second": task, "third": task}
    recipe["steps"] = {
        "joint": {"tasks": ["first", "second"], "adapt": "full", "training": training},
        "more": {"model": "joint", "tasks": ["third", "second"], "adapt": "full", "training": training},
    }
    run(load_recipe(write(recipe)), tmp_path / "run")
    before, after = (
        load_file(tmp_path / "run" / "steps" / step / "model" / "heads.safetensors") for step in ("joint", "more")
    )
    assert set(before) == {f"{name}/{part}" for name in ("first", "second") for part in ("weight", "bias")}
    assert list(dict.fromkeys(key.split("/")[0] for key in sorted(after))) == ["first", "second", "third"]
    assert (after["first/weight"] == before["first/weight"]).all()  # not trained in the chain, and not lost
    assert (after["second/weight"] != before["second/weight"]).any()
    rows = Scoreboard.load(tmp_path / "run" / "scoreboard.parquet").rows
    scored = {step: {row["task"] for row in rows if row["step"] == step} for step in ("base", "joint", "more")}
    assert scored == {
        "base": {"first", "second", "third"},
        "joint": {"first", "second"},
        "more": {"first", "second", "third"},
    }


def test_rows_longer_than_the_models_positions_are_refused_by_plan_and_run(recipe, write, encoder_folder, tmp_path):
    recipe["model"] = str(encoder_folder)
    recipe["tasks"] = {"sign": recipe["tasks"]["sign"]}
    recipe["score"] = False
    recipe["steps"] = {"joint": {"adapt": "full", "training": {"steps": 1, "max_length": 65}}}
    loaded = load_recipe(write(recipe))
    for work in (plan, lambda loaded: run(loaded, tmp_path / "run")):
        with pytest.raises(MultituneError, match="positions for 64 tokens") as refused:
            work(loaded)
        assert refused.value.where == "steps.joint.training.max_length"
