"""Steps that train a model behind the frozen prompt of an earlier step (ProMoT), from the recipe to the scoreboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from multitune.errors import MultituneError, MultituneErrors
from multitune.models.loading import load_saved
from multitune.models.tuners.task_ids import read_prompt_of
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.plan import plan
from multitune.recipes.scoring import score_model
from multitune.scoring.score import ScoreConfig
from multitune.scoring.scoreboard import Scoreboard

WIDTH = 16

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft's own use


def staged(recipe, tuned=None, prompt=None):
    """A prompt of 4 vectors for the task sign, then the whole model behind it; ``tuned`` and ``prompt`` change them."""
    training = recipe["steps"]["joint"]["training"]
    recipe["steps"] = {
        "prompt": {
            "tasks": ["sign"],
            "adapt": {"method": "prompt_tuning", "num_virtual_tokens": 4},
            "training": training | {"learning_rate": 0.05},
            **(prompt or {}),
        },
        "tuned": {"tasks": ["sign"], "adapt": "full", "soft_prompt": "prompt", "training": training, **(tuned or {})},
    }
    return recipe


def model_of(folder: Path, name: str = "tuned") -> Path:
    return folder / "steps" / name / "model"


def logits_of(model, task: str):
    read_prompt_of(model, task)
    with torch.no_grad():
        return model(torch.arange(2, 12)[None]).logits


def answers(folder: Path, step: str, task: str) -> list[str]:
    return predicted(folder / "steps" / step / "predictions" / f"{task}.jsonl")


def predicted(file: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in file.read_text().splitlines()]


READER = """
import sys, torch
from pathlib import Path
from multitune.models.loading import load_saved
from multitune.models.tuners.task_ids import read_prompt_of
model = load_saved(Path(sys.argv[1])).model
found = {}
for task in ("sign", "mark"):
    read_prompt_of(model, task)
    with torch.no_grad():
        found[task] = model(torch.arange(2, 12)[None]).logits.double().sum(-1).flatten().tolist()
import json
print(json.dumps(found))
"""


def test_two_stages_from_the_recipe_to_the_scores(recipe, write, tmp_path):
    """Invariants 1, 5 and 8: what is frozen stays to the last byte, the counts, and both modes in a new process."""
    base = load_file(Path(recipe["model"]) / "model.safetensors")
    numbers = sum(one.numel() for one in base.values())
    loaded = load_recipe(write(staged(recipe)))
    planned = {node.name: node.trainable for node in plan(loaded).nodes}
    assert planned == {"prompt": 4 * WIDTH, "tuned": numbers}
    out = tmp_path / "run"
    run(loaded, out)
    for step, trained in planned.items():
        assert json.loads((out / "steps" / step / "artifact.json").read_text())["trainable_parameters"] == trained

    learned = load_file(model_of(out, "prompt") / "adapter_model.safetensors")["prompt_embeddings"]
    kept = load_file(model_of(out) / "prompts" / "sign" / "adapter_model.safetensors")["prompt_embeddings"]
    assert kept.equal(learned)
    after = load_file(model_of(out) / "model.safetensors")
    assert set(after) == set(base), "a plain model, without the prompt"
    assert all(not after[name].equal(base[name]) for name in base if "proj" in name)

    backbone = load_saved(model_of(out))
    plain = AutoModelForCausalLM.from_pretrained(model_of(out)).eval()
    with torch.no_grad():
        assert logits_of(backbone.model, "mark").equal(plain(torch.arange(2, 12)[None]).logits)
        adapted = PeftModel.from_pretrained(plain, model_of(out) / "prompts" / "sign").eval()
        assert logits_of(backbone.model, "sign").equal(adapted(input_ids=torch.arange(2, 12)[None]).logits[:, 4:])

    told = subprocess.run(
        [sys.executable, "-c", READER, str(model_of(out))], capture_output=True, text=True, check=True, env=os.environ
    )
    found = json.loads(told.stdout.splitlines()[-1])
    for task in ("sign", "mark"):
        assert found[task] == logits_of(backbone.model, task).double().sum(-1).flatten().tolist()
    assert found["sign"] != found["mark"]

    rows = Scoreboard.load(out / "scoreboard.parquet").rows
    assert {row["task"] for row in rows if row["step"] == "tuned"} == {"sign", "echo", "mark"}
    assert "prompts/sign" in (model_of(out) / "README.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("artifact.json")}
    again = run(loaded, out)
    assert not again.done
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("artifact.json")}


def test_stage_one_leaves_the_base_as_it_is(recipe, write, tmp_path):
    """Invariant 1, first half: what trains is the prompt; the base has neither changes nor gradients."""
    from multitune.adaptation.adapting import adapt
    from multitune.adaptation.config import AdaptationConfig
    from multitune.mixing.policies import Proportional
    from multitune.mixing.tokens import tokenise
    from multitune.models.config import ModelConfig
    from multitune.models.loading import load_backbone
    from multitune.recipes.node import Opened
    from multitune.training.train import train

    loaded = load_recipe(write(staged(recipe)))
    backbone = load_backbone(ModelConfig(name=recipe["model"]))
    before = {name: one.clone() for name, one in backbone.model.state_dict().items()}
    backbone = adapt(backbone, AdaptationConfig(method="prompt_tuning", num_virtual_tokens=4))
    start = backbone.model.prompt_encoder["default"].embedding.weight.detach().clone()
    task = Opened(loaded).tasks(("sign",))[0]
    table = tokenise(
        task, "train", backbone.tokenizer, "causal", loaded.folder, max_length=64, cache=tmp_path / "tokens"
    )
    train(backbone, [table], Proportional(), loaded.steps["prompt"].training, tmp_path / "run", seed=0)
    base = backbone.model.get_base_model()
    assert all(one.equal(before[name]) for name, one in base.state_dict().items())
    assert all(one.grad is None for one in base.parameters())
    assert not backbone.model.prompt_encoder["default"].embedding.weight.equal(start)


def test_no_vectors_is_standard_fine_tuning(recipe, write, tmp_path):
    """Invariant 3: step for step, at the same seed and in the same order of rows."""
    recipe = staged(recipe, {"soft_prompt": {"vectors": 0}})
    recipe["steps"]["tuned"]["training"] |= {"pack": "never", "steps": 5}
    recipe["steps"]["standard"] = {
        key: value for key, value in recipe["steps"]["tuned"].items() if key != "soft_prompt"
    }
    del recipe["steps"]["prompt"]
    recipe["score"] = False
    run(load_recipe(write(recipe)), tmp_path / "run")
    ours, theirs = (load_file(model_of(tmp_path / "run", step) / "model.safetensors") for step in ("tuned", "standard"))
    losses = []
    for step in ("tuned", "standard"):
        lines = (tmp_path / "run" / "steps" / step / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(ours[name].allclose(theirs[name], atol=1e-6) for name in theirs)


def test_every_task_trains_behind_its_own_prompt(recipe, write, tmp_path):
    """The multi-task variant: one prompt per task, then one model behind all of them."""
    recipe = staged(recipe, {"tasks": "all"}, {"tasks": "each"})
    out = tmp_path / "run"
    run(load_recipe(write(recipe)), out)
    for task in ("sign", "echo"):
        learned = load_file(model_of(out, f"prompt.{task}") / "adapter_model.safetensors")["prompt_embeddings"]
        kept = load_file(model_of(out) / "prompts" / task / "adapter_model.safetensors")["prompt_embeddings"]
        assert kept.equal(learned)
    model = load_saved(model_of(out)).model
    assert model.task_prompts.names == ("echo", "sign")
    assert not logits_of(model, "sign").equal(logits_of(model, "echo"))


@pytest.mark.parametrize("trains", [True, False], ids=["joint", "fixed"])
def test_the_controls_start_from_fresh_vectors(recipe, write, tmp_path, trains):
    prompt = {"vectors": 5, "init": "uniform", "trains": trains}
    recipe = staged(recipe, {"soft_prompt": prompt})
    del recipe["steps"]["prompt"]
    recipe["score"] = False
    loaded = load_recipe(write(recipe))
    numbers = plan(loaded).nodes[0].trainable
    out = tmp_path / "run"
    run(loaded, out)
    facts = json.loads((out / "steps" / "tuned" / "artifact.json").read_text())
    assert facts["trainable_parameters"] == numbers
    model = load_saved(model_of(out)).model
    assert model.task_prompts.vectors[0].shape == (5, WIDTH)
    from multitune.models.task_prompts import fresh_prompts

    base = AutoModelForCausalLM.from_pretrained(recipe["model"])
    drawn = fresh_prompts(base, ["sign"], 5, "uniform", seed=0)["sign"]
    assert model.task_prompts.vectors[0].equal(drawn) != trains


def test_the_second_stage_may_be_lora(recipe, write, tmp_path):
    recipe = staged(recipe, {"adapt": {"method": "lora", "r": 2}})
    recipe["steps"]["merged"] = recipe["steps"]["tuned"] | {"export": "merged"}
    recipe["score"] = False
    run(load_recipe(write(recipe)), tmp_path / "run")
    adapter, merged = (load_saved(model_of(tmp_path / "run", step)).model for step in ("tuned", "merged"))
    for task in ("sign", "mark"):
        assert logits_of(adapter, task).allclose(logits_of(merged, task), atol=1e-5)


def test_a_second_task_keeps_the_prompt_of_the_first(recipe, write, tmp_path):
    """The sequential variant: both stages again, from the model that the first task left."""
    recipe = staged(recipe)
    echo = {"model": "tuned", "tasks": ["echo"]}
    recipe["steps"]["prompt2"] = recipe["steps"]["prompt"] | echo
    recipe["steps"]["tuned2"] = recipe["steps"]["tuned"] | echo | {"soft_prompt": "prompt2"}
    recipe["score"] = False
    out = tmp_path / "run"
    run(load_recipe(write(recipe)), out)
    first = load_file(model_of(out, "tuned") / "prompts" / "sign" / "adapter_model.safetensors")["prompt_embeddings"]
    then = load_file(model_of(out, "tuned2") / "prompts" / "sign" / "adapter_model.safetensors")["prompt_embeddings"]
    assert then.equal(first)
    assert load_saved(model_of(out, "tuned2")).model.task_prompts.names == ("echo", "sign")


def test_scoring_can_leave_the_prompt_out(recipe, write, tmp_path):
    recipe = staged(recipe, {}, {"training": recipe["steps"]["joint"]["training"] | {"learning_rate": 2.0, "steps": 8}})
    recipe["steps"]["without"] = {"do": "score", "model": "tuned", "soft_prompt": "off"}
    recipe["steps"]["everywhere"] = {"do": "score", "model": "tuned", "soft_prompt": "always"}
    recipe["tasks"]["echo2"] = recipe["tasks"]["echo"] | {"held_out": True}
    out = tmp_path / "run"
    run(load_recipe(write(recipe)), out)
    assert answers(out, "without", "mark") == answers(out, "tuned", "mark")
    assert answers(out, "everywhere", "sign") == answers(out, "tuned", "sign")
    assert answers(out, "without", "echo2") == answers(out, "tuned", "echo2")
    assert answers(out, "everywhere", "echo2") != answers(out, "without", "echo2")

    for which, step in (("own", "tuned"), ("off", "without"), ("always", "everywhere")):
        asked, kept = ScoreConfig(soft_prompt=which), tmp_path / which
        score_model(str(model_of(out)), out / "recipe.yaml", out=kept, seed=0, config=asked)
        assert predicted(kept / "predictions" / "echo2.jsonl") == answers(out, step, "echo2")


def test_the_target_chooses_the_weights_of_the_second_stage(recipe, write, tmp_path):
    recipe = staged(recipe)
    recipe["tasks"]["sign"]["validation"] = {"fraction": 0.25}
    watched = {"eval_steps": 1, "load_best_model_at_end": True, "early_stopping_patience": 1, "learning_rate": 5.0}
    recipe["steps"]["tuned"]["training"] = recipe["steps"]["tuned"]["training"] | watched | {"steps": 6}
    recipe["score"] = False
    out = tmp_path / "run"
    run(load_recipe(write(recipe)), out)
    lines = [json.loads(line) for line in (out / "steps/tuned/validation.jsonl").read_text().splitlines()]
    assert len(lines) < 7, "it stopped early"
    best = min(lines, key=lambda line: line["loss"])["step"]
    base = load_file(Path(recipe["model"]) / "model.safetensors")
    left = load_file(model_of(out) / "model.safetensors")
    assert all(left[name].equal(base[name]) for name in base) == (best == 0)


@pytest.mark.parametrize(
    ("tuned", "prompt", "told"),
    [
        ({"soft_prompt": "promt"}, {}, "There is no train step 'promt' whose prompt .* 'prompt'"),
        ({"soft_prompt": "prompt.sign"}, {}, "There is no train step 'prompt.sign' whose prompt"),
        ({}, {"adapt": {"method": "lora", "r": 2}}, "'prompt' leaves an adapter of type lora, which is no soft prompt"),
        ({}, {"adapt": {"method": "dept"}}, "leaves an adapter of type dept, which is no soft prompt"),
        ({}, {"adapt": {"method": "prefix_tuning"}}, "type prefix_tuning, which is no soft prompt"),
        ({}, {"export": "merged"}, "leaves what export: merged writes, which is no soft prompt"),
        ({"model": "other"}, {}, "The prompt of 'prompt' was trained on 'base', and this step trains 'other'"),
        ({"tasks": ["echo"]}, {}, "The prompt of 'prompt' was not trained on echo, which this step trains behind it"),
        ({"tasks": "all"}, {}, "was not trained on echo"),
        ({"tasks": "all", "soft_prompt": "prompt.sign"}, {"tasks": "each"}, "was not trained on echo"),
        ({"adapt": "dept"}, {}, "The method 'dept' cannot train behind a prompt of another step"),
        ({"adapt": "mhr"}, {}, "The method 'mhr' cannot train behind a prompt of another step"),
        ({}, {"soft_prompt": {"vectors": 3}}, "'prompt_tuning' cannot train behind a prompt"),
        ({"soft_prompt": {"step": "prompt", "vectors": 3}}, {}, "give one of the two"),
        ({"soft_prompt": {"trains": True}}, {}, "give one of the two"),
        ({"soft_prompt": {"step": "prompt", "init": "uniform"}}, {}, "Init is of fresh vectors"),
        ({"soft_prompt": {"vectors": -1}}, {}, "'vectors' cannot be -1"),
        ({"soft_prompt": "tuned"}, {}, "The steps tuned -> tuned wait for one another"),
    ],
)
def test_what_cannot_stand_before_the_inputs_is_told_at_check(recipe, write, tuned, prompt, told):
    recipe = staged(recipe, tuned, prompt)
    recipe["steps"]["other"] = recipe["steps"]["prompt"] | {"adapt": "full", "soft_prompt": None}
    with pytest.raises((MultituneError, MultituneErrors), match=told):
        load_recipe(write(recipe))


def test_packed_rows_are_refused(recipe, write):
    recipe = staged(recipe)
    recipe["steps"]["tuned"]["training"] |= {"pack": "always"}
    with pytest.raises((MultituneError, MultituneErrors), match="such rows are not packed"):
        load_recipe(write(recipe))
