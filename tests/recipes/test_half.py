"""Half fine-tuning in recipes: a chain of steps is a sequence of rounds, planned, saved and gone on from."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertModel

from multitune.adaptation.half import half_round
from multitune.adaptation.half_config import HalfConfig
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.heads import encoder_with_heads, freeze_pooler
from multitune.models.loading import load_saved, rounds_of, save_backbone
from multitune.models.location import resolve
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan
from multitune.reporting.report import write_report
from multitune.tasks.task import Task


@pytest.fixture
def chain(recipe):
    """Two trainings one after another, each of a half."""
    training = recipe["steps"]["joint"]["training"]
    recipe["score"] = False
    recipe["steps"] = {
        "first": {"adapt": {"method": "half"}, "tasks": ["sign"], "training": training},
        "second": {"adapt": {"method": "half"}, "tasks": ["echo"], "training": training, "model": "first"},
    }
    return recipe


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed(before, after):
    return {name for name in after if not (before[name] == after[name]).all()}


def test_every_step_of_a_chain_is_a_round_with_a_half_of_its_own(chain, write, tmp_path, model_folder):
    assert list(run(load_recipe(write(chain)), tmp_path / "run").done) == ["first", "second"]
    models = {step: tmp_path / "run" / "steps" / step / "model" for step in chain["steps"]}
    manifests = {step: json.loads((folder / "half.json").read_text()) for step, folder in models.items()}
    assert [manifest["round"] for manifest in manifests.values()] == [1, 2]
    assert manifests["first"]["frozen"] != manifests["second"]["frozen"]
    base, first, second = weights(model_folder), weights(models["first"]), weights(models["second"])
    assert changed(base, first) == set(base) - set(manifests["first"]["frozen"])
    assert changed(first, second) == set(base) - set(manifests["second"]["frozen"])
    for step, folder in models.items():
        facts = json.loads((folder.parent / "artifact.json").read_text())
        assert facts["trainable_parameters"] == manifests[step]["trainable_parameters"]


def test_the_report_shows_what_every_round_kept(chain, write, tmp_path):
    del chain["score"]
    second = chain["steps"]["second"]
    second |= {"tasks": ["echo", "sign"], "mixture": {"policy": "replay", "earlier": ["sign"], "share": 0.25}}
    run(load_recipe(write(chain)), tmp_path / "run")
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "What every round kept of the ones before" in page
    assert '<th scope="row">second</th>' in page


def test_the_plan_says_what_trains_in_every_round(chain, write, tmp_path):
    """With fewer keys than queries the number differs from half to half."""
    loaded = load_recipe(write(chain))
    planned = {node.name: node.trainable for node in plan(loaded).nodes}
    run(loaded, tmp_path / "run")
    for step in chain["steps"]:
        manifest = json.loads((tmp_path / "run" / "steps" / step / "model" / "half.json").read_text())
        assert planned[step] == manifest["trainable_parameters"]


def test_a_recipe_that_starts_from_a_trained_model_goes_on_counting_rounds(chain, write, tmp_path):
    second = chain["steps"].pop("second")
    run(load_recipe(write(chain)), tmp_path / "run")
    trained = tmp_path / "run" / "steps" / "first" / "model"
    assert rounds_of(ModelConfig(name=str(trained))) == 1
    del second["model"]
    chain |= {"model": str(trained), "steps": {"later": second}}
    run(load_recipe(write(chain)), tmp_path / "later")
    manifest = json.loads((tmp_path / "later" / "steps" / "later" / "model" / "half.json").read_text())
    assert manifest["round"] == 2


def test_a_model_that_the_hub_has_or_that_is_embedded_was_never_trained_here():
    assert rounds_of(ModelConfig(name="tiny")) == 0


def test_quantised_weights_are_refused(chain, write):
    chain["model"] = {"name": chain["model"], "quantize": "4bit"}
    with pytest.raises(MultituneError, match="Quantised weights cannot train"):
        load_recipe(write(chain))


def test_an_encoder_trains_its_heads_and_half_of_its_layers():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = BertModel(BertConfig(vocab_size=30, **sizes))
    model = encoder_with_heads(encoder, [Task(name="mood", kind="label", choices=("bad", "good"))], 0)
    freeze_pooler(model)
    half = half_round(model, HalfConfig(), seed=0)
    assert {"weight", "bias"} <= set(half.sizes) - half.frozen  # all heads in one matrix
    assert not any(name.startswith("encoder.embeddings.") for name in half.frozen)
    assert not any("pooler" in name for name in half.sizes)  # frozen before, as it takes no part in the loss
    frozen = [p for name, p in half.places.items() if name in half.frozen]
    assert {p.layer for p in frozen} == {0, 1}
    assert len({p.unit for p in frozen if p.category == "attention"}) == 4


@pytest.fixture
def delta(chain):
    """One training whose half alone is saved."""
    chain["steps"] = {"first": chain["steps"]["first"] | {"export": "delta"}}
    return chain


def test_the_trained_half_alone_and_its_base_are_the_model_to_the_bit(delta, write, tmp_path, model_folder):
    run(load_recipe(write(delta)), tmp_path / "half")
    run(load_recipe(write(delta), ["steps.first.export=merged"]), tmp_path / "whole")
    half, whole = (tmp_path / out / "steps" / "first" / "model" for out in ("half", "whole"))
    stored = load_file(half / "delta.safetensors")
    frozen = json.loads((half / "half.json").read_text())["frozen"]
    assert set(stored) == set(weights(whole)) - set(frozen)
    assert not (half / "model.safetensors").exists()
    backbone = load_saved(half)
    for name, parameter in backbone.model.named_parameters():
        assert (parameter.detach().numpy() == weights(whole)[name]).all(), name
    assert backbone.rounds == 1
    card = (half / "README.md").read_text()
    assert "load_saved" in card and "library_name: multitune" in card
    save_backbone(backbone, tmp_path / "again", merged=True)
    assert changed(weights(tmp_path / "again"), weights(whole)) == set()
    assert run(load_recipe(write(delta)), tmp_path / "half").done == ()


def test_the_trained_half_is_scored_and_needs_its_very_base(delta, write, tmp_path, model_folder):
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    delta |= {"model": str(base), "score": {"rows": 2}}
    run(load_recipe(write(delta)), tmp_path / "run")
    folder = tmp_path / "run" / "steps" / "first" / "model"
    other = weights(base)
    name = json.loads((folder / "half.json").read_text())["frozen"][0]
    save_file(other | {name: other[name] + 1}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MultituneError, match="not the model whose half was trained: its other tensors have changed"):
        load_saved(folder)
    with pytest.raises(MultituneError, match="holds the tensors that half fine-tuning changed, and no others"):
        resolve(ModelConfig(name=str(folder)))
    stored = folder / "delta.safetensors"
    stored.write_bytes(stored.read_bytes()[:-8])
    with pytest.raises(MultituneError, match="cut short"):
        load_saved(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"adapt": "full"}, "'full' freezes no half"),
        ({"adapt": {"method": "half", "resample": "epoch"}}, "another half at every epoch changes everything"),
        ({"model": "zeroth"}, "'zeroth' is trained in this recipe"),
    ],
)
def test_a_delta_that_cannot_be_is_refused(delta, write, change, what):
    delta["steps"]["zeroth"] = {"adapt": "full"}
    delta["steps"]["first"] |= change
    with pytest.raises(MultituneError, match=what):
        load_recipe(write(delta))


def test_a_delta_is_neither_trained_further_nor_merged(delta, write):
    delta["steps"]["more"] = {"model": "first"}
    delta["steps"]["merged"] = {"do": "merge", "method": "task_arithmetic", "models": ["first"]}
    with pytest.raises(MultituneError) as caught:
        load_recipe(write(delta))
    assert "leaves what it trained alone, which cannot be trained further" in str(caught.value)
    assert "leaves the tensors that it trained alone, and a merge reads whole models" in str(caught.value)


def test_the_manifest_of_redrawn_halves_speaks_of_the_first_epoch(chain, write, tmp_path):
    chain["steps"]["first"]["adapt"]["resample"] = "epoch"
    del chain["steps"]["second"]
    run(load_recipe(write(chain)), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "steps" / "first" / "model" / "half.json").read_text())
    assert "frozen" not in told and told["frozen_in_first_epoch"]
