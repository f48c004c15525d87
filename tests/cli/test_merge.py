"""`multitune merge`: files of ours and of mergekit, words, plans, sweeps, and every mistake with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from multitune.cli import main
from multitune.scoring.scoreboard import Scoreboard
from tests.small_llama import small_llama


def answered(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()  # what saving the models has said
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return end.value.code, told.out, told.err


MODELS = {
    "llama": lambda: small_llama(40),
    "bert": lambda: BertModel(
        BertConfig(vocab_size=40, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=16)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    ),
}


def save_family(folder: Path, kind: str) -> None:
    """Save a model and two neighbours of it."""
    for number, name in enumerate(("base", "a", "b")):
        torch.manual_seed(0)
        model = MODELS[kind]()
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * number * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / name)


@pytest.fixture
def family(tmp_path, monkeypatch):
    save_family(tmp_path, "llama")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", MODELS)
def test_a_merge_loads_with_plain_transformers(kind, tmp_path, capsys):
    save_family(tmp_path, kind)
    words = ["--base", tmp_path / "base", "--models", tmp_path / "a", tmp_path / "b", "--set", "lambda=0.5"]
    code, out, _ = answered(capsys, "merge", "--method", "task_arithmetic", *words, "--out", tmp_path / "m", "--json")
    assert code == 0
    assert json.loads(out)["method"] == "task_arithmetic"
    base, a, b, merged = (AutoModel.from_pretrained(tmp_path / one).state_dict() for one in ("base", "a", "b", "m"))
    for name, tensor in merged.items():
        wanted = base[name] + 0.5 * (a[name] - base[name] + b[name] - base[name])
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)


def test_our_file_mergekits_and_words_say_the_same(family, capsys):
    ours = {
        "method": "ties",
        "base": "base",
        "models": ["a", "b"],
        "parameters": {"density": 0.3},
        "compat": "mergekit",
    }
    (family / "ours.yaml").write_text(yaml.safe_dump(ours))
    theirs = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"density": 0.3},
    }
    (family / "theirs.yaml").write_text(yaml.safe_dump(theirs))
    words = [
        "--method",
        "ties",
        "--base",
        "base",
        "--models",
        "a",
        "b",
        "--set",
        "density=0.3",
        "--set",
        "compat=mergekit",
    ]
    for name, given in (("1", ["ours.yaml"]), ("2", ["theirs.yaml"]), ("3", words)):
        assert answered(capsys, "merge", *given, "--out", f"merged-{name}")[0] == 0
    first, *others = (AutoModelForCausalLM.from_pretrained(family / f"merged-{name}").state_dict() for name in "123")
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_plan_tells_bytes_time_and_memory_and_writes_nothing(family, capsys):
    words = ["--method", "ties", "--base", "base", "--models", "a", "b", "--plan"]
    code, out, _ = answered(capsys, "merge", *words, "--json")
    told = json.loads(out)
    sizes = [sum(file.stat().st_size for file in (family / name).glob("*.safetensors")) for name in ("base", "a", "b")]
    assert code == 0
    assert 0.8 * sum(sizes) < told["bytes_to_read"] < sum(sizes)
    assert told["bytes_to_write"] * 3 == told["bytes_to_read"]
    assert told["peak_bytes"] > 0
    assert {"base", "a", "b"} == {path.name for path in family.iterdir()}
    assert "passes" in answered(capsys, "merge", *words)[1]


def test_explain_tells_the_parameters_of_every_model_and_tensor(family, capsys):
    merge = {
        "method": "task_arithmetic",
        "base": "base",
        "models": [{"model": "a", "parameters": {"weight": {"*mlp*": 0.1, "default": [0.0, 1.0]}}}, "b"],
        "parameters": {"weight": 0.5},
    }
    (family / "merge.yaml").write_text(yaml.safe_dump(merge))
    code, out, _ = answered(capsys, "merge", "merge.yaml", "--explain", "--json")
    told = json.loads(out)["parameters"]
    assert code == 0
    assert told["model.layers.0.mlp.up_proj.weight"]["weight"] == [0.1, 0.5]
    assert told["model.layers.0.self_attn.q_proj.weight"]["weight"] == [0.0, 0.5]
    assert told["model.norm.weight"]["weight"] == [1.0, 0.5]
    assert "self_attn.q_proj" in answered(capsys, "merge", "merge.yaml", "--explain")[1]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--out", "m"], "There is nothing to merge"),
        (["--method", "ties", "--base", "base", "--models", "a"], "no folder for the result"),
        (["--method", "tie", "--base", "base", "--models", "a", "--out", "m"], "Did you mean 'ties'"),
        (["--method", "ties", "--models", "a", "--out", "m"], "needs the base model"),
        (["--method", "ties", "--base", "base", "--models", "a", "a", "--out", "m"], "given twice"),
        (["--method", "ties", "--base", "base", "--models", "a", "--set", "densty=1", "--out", "m"], "'density'"),
        (["--method", "ties", "--base", "base", "--models", "a", "--set", "density=2", "--out", "m"], "0 to 1"),
        (["--method", "ties", "--base", "base", "--models", "a", "--out", "a/m"], "lie in one another"),
        (["--method", "ties", "--base", "base", "--models", "a", "--out", "b"], "exists and is not empty"),
        (["--method", "ties", "--base", "base", "--models", "./none", "--out", "m"], "does not exist"),
        (["nothing.yaml", "--out", "m"], "no file 'nothing.yaml'"),
        (["merge.yaml", "--method", "ties", "--out", "m"], "A file says what is merged"),
        (["merge.yaml", "other.yaml", "--out", "m"], "one file too many"),
        (["merge.yaml", "--out", "m"], "Did you mean 'models'"),
        (["merge.yaml", "--sweep", "lambda=[1]", "--out", "m"], "--tasks is missing"),
    ],
)
def test_mistakes_end_with_2_and_leave_nothing(family, capsys, words, what):
    (family / "merge.yaml").write_text("method: ties\nbase: base\nmodls: [a]\n")
    before = sorted(family.rglob("*"))
    code, _, err = answered(capsys, "merge", *words)
    assert code == 2
    assert what in " ".join(err.split())
    assert sorted(family.rglob("*")) == before


def test_a_sweep_compares_on_validation_rows_and_writes_the_best(recipe_with_validation, capsys, tmp_path):
    base, tasks = recipe_with_validation
    words = ["--method", "task_arithmetic", "--base", base, "--models", tmp_path / "a", "--tasks", tasks]
    sweep = ["--sweep", "lambda=[0.0, 0.5, 1.0]", "--out", tmp_path / "merged", "--json"]
    code, out, _ = answered(capsys, "merge", *words, *sweep)
    told = json.loads(out)
    assert code == 0
    assert [one["name"] for one in told["candidates"]] == ["lambda=0", "lambda=0.5", "lambda=1"]
    assert told["best"] == max(told["candidates"], key=lambda one: one["quality"])["name"]
    assert all(one["quality"] == next(iter(one["tasks"].values())) for one in told["candidates"])
    page = (tmp_path / "merged-search" / "search.html").read_text()
    assert told["search"] == str(tmp_path / "merged-search" / "search.html")
    assert "quality against lambda" in page
    assert page.count('<th scope="row">lambda=') == 3
    rows = Scoreboard.load(tmp_path / "merged-search" / "scoreboard.parquet").rows
    assert {row["split"] for row in rows} == {"validation"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged") is not None


@pytest.fixture
def recipe_with_validation(tmp_path):
    """The embedded model, a neighbour of it, and a task with validation rows."""
    from transformers import AutoTokenizer

    from multitune.models.tiny import tiny_path

    model = AutoModelForCausalLM.from_pretrained(tiny_path())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "a")
    AutoTokenizer.from_pretrained(tiny_path()).save_pretrained(tmp_path / "a")
    rows = [{"text": f"number {i - 5}", "label": "minus" if i < 5 else "plus"} for i in range(12)]
    (tmp_path / "sign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"train": "sign.jsonl", "validation": "sign.jsonl", "prompt": "{{ text }}:", "target": "{{ label }}"}
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(yaml.safe_dump({"tasks": {"sign": task | {"kind": "label", "choices": ["minus", "plus"]}}}))
    return tiny_path(), tasks
