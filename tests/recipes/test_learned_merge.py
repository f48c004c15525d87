"""Merge steps whose methods look at rows: aTLAS, AdaMerging, Fisher merging, RegMean."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from multitune.errors import MultituneError, MultituneErrors
from multitune.models.loading import load_saved
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.merge_file import merge_of_words
from multitune.reporting.report import write_report
from multitune.weights.learned.step_config import LEARNED_METHODS

TRAINING = {"steps": 2, "batch_size": 4, "max_length": 48, "learning_rate": 0.02, "logging_steps": 1}


@pytest.fixture
def learning(recipe):
    """An adapter and a whole model of the base, each of one task, and merges of them that look at validation rows."""
    for name in ("sign", "echo"):
        recipe["tasks"][name]["validation"] = f"data/{name}/test.jsonl"
    recipe["score"] = False
    recipe["steps"] = {
        "a": {"tasks": ["sign"], "adapt": {"method": "lora", "r": 2}, "training": dict(TRAINING)},
        "b": {"tasks": ["echo"], "adapt": "full", "training": dict(TRAINING)},
        "merged": {
            "do": "merge",
            "method": "atlas",
            "models": ["a", "b"],
            "parameters": {"epochs": 3, "learning_rate": 0.1, "batch_size": 2},
        },
    }
    return recipe


def state(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def told(out, step="merged"):
    return json.loads((out / "steps" / step / "coefficients.json").read_text())


def test_atlas_writes_the_composition_that_its_coefficients_tell(learning, write, tmp_path):
    learning["score"] = {"rows": 2}
    out = tmp_path / "run"
    run(load_recipe(write(learning)), out)
    base, whole = state(learning["model"]), state(out / "steps" / "b" / "model")
    adapted = load_saved(out / "steps" / "a" / "model").model.merge_and_unload().state_dict()
    found, learned = state(out / "steps" / "merged" / "model"), told(out)
    values = {block["block"]: [one for [one] in block["values"]] for block in learned["blocks"]}
    for name, tensor in found.items():
        first, second = values[name]
        wanted = base[name] + first * (adapted[name] - base[name]) + second * (whole[name] - base[name])
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)
    assert any(abs(one) > 0.01 for pair in values.values() for one in pair)
    assert learned["rows"] == {"sign": 6, "echo": 6}  # and none of the held-out task
    assert len(learned["scores"]) == 4 and learned["scores"][learned["epoch"]] == max(learned["scores"])
    page = write_report([out], out / "report.html").read_text()
    assert "What merges took from each model" in page and "Mean loss of the rows that choose" in page
    assert "method: atlas" in (out / "steps" / "merged" / "model" / "README.md").read_text()
    assert run(load_recipe(write(learning)), out).done == ()


def test_only_validation_rows_decide(learning, write, tmp_path, data):
    out = tmp_path / "run"
    run(load_recipe(write(learning)), out)
    before = told(out)
    learning["tasks"]["sign"]["test"] = "data/mark/train.jsonl"
    assert run(load_recipe(write(learning)), out).done == ()
    rows = (data / "data" / "echo" / "test.jsonl").read_text().replace("say", "tell")
    (data / "data" / "echo" / "test.jsonl").write_text(rows)
    assert run(load_recipe(write(learning)), out).done == ("merged",)
    assert told(out)["scores"] != before["scores"]


def test_a_held_out_task_is_learned_for_when_it_is_named(learning, write, tmp_path):
    learning["tasks"]["mark"]["validation"] = "data/mark/train.jsonl"
    learning["steps"]["merged"] |= {"tasks": ["mark"]}
    learning["steps"]["merged"]["parameters"] = {"epochs": 1, "learning_rate": 0.1, "least_batches": 3}
    run(load_recipe(write(learning)), tmp_path / "run")
    assert told(tmp_path / "run")["rows"] == {"mark": 24}


@pytest.mark.parametrize(("wise", "count"), [("task", 2), ("layer", 2 * 21)])
def test_adamerging_stays_between_zero_and_one_and_reads_no_label(learning, write, tmp_path, data, wise, count):
    learning["steps"]["merged"] |= {"method": "adamerging", "tasks": ["sign"]}
    learning["steps"]["merged"]["parameters"] = {"wise": wise, "steps": 3, "batch_size": 2, "learning_rate": 0.5}
    out = tmp_path / "run"
    run(load_recipe(write(learning)), out)
    before = told(out)
    values = [one for block in before["blocks"] for [one] in block["values"]]
    assert before["coefficients"] == count == len(values)
    assert all(0 <= one <= 1 for one in values) and len(set(values)) > 1
    rows = (data / "data" / "sign" / "test.jsonl").read_text()
    (data / "data" / "sign" / "test.jsonl").write_text(rows.replace("minus", "plus"))
    assert run(load_recipe(write(learning)), out).done == ("merged",)
    assert told(out)["blocks"] == before["blocks"]


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_an_average_of_one_model_is_that_model(learning, write, tmp_path, method):
    learning["steps"]["merged"] |= {"method": method, "models": ["b"], "parameters": {"batch_size": 4}}
    run(load_recipe(write(learning)), tmp_path / "run")
    whole, found = (state(tmp_path / "run" / "steps" / step / "model") for step in ("b", "merged"))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_models_are_measured_on_rows_of_their_own_tasks(learning, write, tmp_path, method):
    learning["steps"]["merged"] |= {"method": method, "parameters": {"rows": 4}, "dtype": "bfloat16"}
    out = tmp_path / "run"
    run(load_recipe(write(learning)), out)
    learned = told(out)
    assert learned["measured_on"] == [["sign"], ["echo"]] and learned["rows"] == {"sign": 4, "echo": 4}
    base, found = state(learning["model"]), state(out / "steps" / "merged" / "model")
    assert any(not torch.equal(found[name].float(), base[name]) for name in found)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    for block in learned.get("blocks", []):
        assert sum(one for [one] in block["values"]) == pytest.approx(1.0)
    assert bool(learned.get("blocks")) == (method == "fisher")


def test_a_models_own_weight_counts(learning, write, tmp_path):
    learning["steps"]["merged"] |= {"method": "fisher", "parameters": {}}
    learning["steps"]["merged"]["models"] = [{"model": "a", "parameters": {"weight": 1e9}}, "b"]
    run(load_recipe(write(learning)), tmp_path / "run")
    adapted = load_saved(tmp_path / "run" / "steps" / "a" / "model").model.merge_and_unload().state_dict()
    for name, tensor in state(tmp_path / "run" / "steps" / "merged" / "model").items():
        torch.testing.assert_close(tensor, adapted[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", sorted(LEARNED_METHODS))
def test_encoders_keep_their_heads(recipe, model_folder, write, tmp_path, method):
    folder = tmp_path / "encoder"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    sign = recipe["tasks"]["sign"] | {"validation": "data/sign/test.jsonl"}
    length = sign | {"kind": "regress", "target": "{{ text | length }}"}
    del length["choices"]
    recipe |= {"model": str(folder), "tasks": {"sign": sign, "length": length}, "score": {"rows": 2}}
    steps = {"atlas": {"epochs": 2, "batch_size": 2, "learning_rate": 0.1}, "adamerging": {"steps": 2}}
    merge = {"do": "merge", "method": method, "models": ["own"], "parameters": steps.get(method, {})}
    recipe["steps"] = {
        "own": {"tasks": "each", "adapt": "full", "training": dict(TRAINING)},
        "merged": merge | ({"tasks": ["sign"]} if method == "adamerging" else {}),
    }
    out = tmp_path / "run"
    run(load_recipe(write(recipe)), out)
    model = out / "steps" / "merged" / "model"
    assert [head.task for head in load_saved(model).model.heads] == ["sign", "length"]
    found, base = (AutoModel.from_pretrained(each).state_dict() for each in (model, folder))
    moved = told(out).get("epoch", 1) > 0  # aTLAS may find no epoch better than the start
    assert any(not torch.equal(found[name], base[name]) for name in found) == moved
    if method == "adamerging":
        recipe["steps"]["merged"]["tasks"] = ["length"]
        with pytest.raises(MultituneError, match="predicts a number, which has no entropy"):
            run(load_recipe(write(recipe)), out)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"parameters": {"epoch": 3}}, "Did you mean 'epochs'"),
        ({"parameters": {"epochs": 0}}, "0 is not greater than or equal to 1"),
        ({"parameters": {"blocks": "tensors"}}, "'tensors' is not"),
        ({"parameters": {"pick": 1.0}}, "1.0 is not less than 1"),
        ({"parameters": {"rows": "many"}}, "'many' is not"),
        ({"models": [{"model": "a", "parameters": {"weight": 2}}, "b"]}, "one for the whole merge by 'atlas'"),
        ({"method": "fisher", "models": [{"model": "a", "parameters": {"weigth": 2}}]}, "Did you mean 'weight'"),
        ({"method": "fisher", "models": [{"model": "a", "parameters": {"weight": -1}}]}, "-1.0 is not greater than 0"),
        ({"method": "fisher", "parameters": {"learning_rate": 1}}, "'fisher' has no parameter 'learning_rate'"),
        ({"method": "regmean", "parameters": {"alpha": 1.5}}, "1.5 is not less than or equal to 1"),
        ({"search": {"over": {"epochs": [1, 2]}}}, "takes no search"),
        ({"lines": {"beta": 0.5}}, "takes no lines"),
        ({"vocabulary": "union"}, "needs them to have one vocabulary"),
        ({"tasks": ["sing"]}, "Did you mean 'sign'"),
        ({"tasks": ["mark"]}, "there are none for mark"),
        ({"method": "ties", "tasks": ["sign"]}, "a search looks at no rows"),
        ({"method": "ties", "tasks": ["sing"], "search": {"over": {"lambda": [1]}}}, "Did you mean 'sign'"),
        ({"models": ["a", "a"]}, "'a' is given twice"),
        ({"models": ["a", "c"]}, "no model 'c'"),
        ({"base": None}, "needs the base model"),
        ({"models": []}, "needs either models or slices"),
        ({"method": "atlass"}, "Did you mean 'atlas'"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(learning, write, change, what):
    learning["steps"]["merged"].update({"parameters": {}} | change)
    with pytest.raises(MultituneErrors) as caught:
        load_recipe(write(learning))
    found = [str(error) for error in caught.value.errors]
    assert any(what in one and "steps.merged" in one for one in found), found


def test_tasks_without_validation_rows_are_refused(learning, write):
    for name in ("sign", "echo"):
        del learning["tasks"][name]["validation"]
    with pytest.raises(MultituneErrors, match="looks at validation rows, and no training task has any"):
        load_recipe(write(learning))


def test_one_row_cannot_both_teach_and_choose(learning, write, tmp_path):
    learning["steps"]["merged"]["parameters"] = {"rows": 1}
    with pytest.raises(MultituneError, match="1 validation rows of 'sign' cannot both teach and choose"):
        run(load_recipe(write(learning)), tmp_path / "run")


def test_a_merge_of_files_has_no_rows(model_folder):
    with pytest.raises(MultituneError, match="looks at rows, and a merge of files has none"):
        merge_of_words("atlas", str(model_folder), [str(model_folder / "other")])
