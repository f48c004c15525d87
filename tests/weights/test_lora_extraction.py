"""An extracted adapter is what peft loads, exact where the change has its rank, and honest about the rest."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from multitune.cli import main
from multitune.errors import MultituneError
from multitune.models.pretrained import peft_warnings_logged
from multitune.weights.checkpoints import Checkpoint
from multitune.weights.lora_extraction import extract_lora, factors
from tests.small_llama import small_llama

MODELS = {
    "llama": (lambda: small_llama(40), AutoModelForCausalLM),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=16)),
        AutoModelForCausalLM,
    ),
    "bert": (
        lambda: BertModel(
            BertConfig(vocab_size=40, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
        ),
        AutoModel,
    ),
}


def save_pair(folder, kind: str, rank: int) -> None:
    """Save a base and a model whose matrices inside the layers changed by the given rank."""
    torch.manual_seed(0)
    model = MODELS[kind][0]()
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and (".layers." in name or ".h." in name or ".layer." in name):
                rows, columns = parameter.shape
                parameter.add_(0.2 * torch.randn(rows, rank) @ torch.randn(rank, columns))
    model.save_pretrained(folder / "tuned")


@pytest.mark.parametrize("kind", MODELS)
def test_a_change_of_that_rank_is_recovered_and_peft_loads_it(kind, tmp_path):
    save_pair(tmp_path, kind, 2)
    found = extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank=2)
    assert found.errors and max(found.errors.values()) < 1e-5
    assert found.left_out == {}
    assert found.kept == pytest.approx(1.0)
    auto = MODELS[kind][1]
    tuned = auto.from_pretrained(tmp_path / "tuned").eval()
    with peft_warnings_logged():
        adapted = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    ids = torch.tensor([[3, 5, 7, 11]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids)[0], tuned(input_ids=ids)[0], atol=1e-5, rtol=1e-4)
    engine = Checkpoint.open(tmp_path / "adapter")
    assert engine.adapter is not None and set(engine.targets)


def test_errors_are_those_of_the_best_approximation(tmp_path):
    save_pair(tmp_path, "llama", 6)
    found = extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank=3)
    base, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned"))
    for name, error in found.errors.items():
        s = torch.linalg.svdvals(tuned[name] - base[name])
        assert error == pytest.approx(float((s[3:].square().sum() / s.square().sum()).sqrt()), abs=1e-3)
    assert 0 < found.kept < 1


def test_what_no_matrix_holds_is_told(tmp_path):
    save_pair(tmp_path, "llama", 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    model.save_pretrained(tmp_path / "tuned")
    found = extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank=1)
    assert list(found.left_out) == ["model.norm.weight"]
    assert found.kept + found.left_out["model.norm.weight"] == pytest.approx(1.0, abs=1e-5)


def test_the_same_seed_gives_the_same_factors_and_the_caller_keeps_its_own_randomness():
    delta = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    b, a = factors(delta, 4, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(factors(delta, 4, seed=1), (b, a), atol=0, rtol=0)
    assert (b.shape, a.shape) == ((20, 4), (4, 12))
    assert factors(delta, 100, seed=1)[0].shape == (20, 12)  # no rank above the matrix's own


@pytest.mark.parametrize(
    ("base", "tuned", "out", "rank", "what"),
    [
        ("base", "base", "new", 2, "differs between the models"),
        ("base", "adapter", "new", 2, "an adapter already"),
        ("base", "tuned", "base/new", 2, "lie in one another"),
        ("base", "tuned", "adapter", 2, "not empty"),
        ("base", "tuned", "new", 0, "holds nothing"),
    ],
)
def test_what_cannot_be_extracted_is_refused(tmp_path, base, tuned, out, rank, what):
    save_pair(tmp_path, "llama", 1)
    extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank=1)
    with pytest.raises(MultituneError, match=what):
        extract_lora(tmp_path / base, tmp_path / tuned, tmp_path / out, rank=rank)
    assert not (tmp_path / "new").exists()


def test_the_verb_tells_every_error(tmp_path, capsys):
    save_pair(tmp_path, "llama", 1)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["extract-lora", str(tmp_path / "base"), str(tmp_path / "tuned"), "--out", str(tmp_path / "a"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert told["rank"] == 16
    assert max(told["errors"].values()) < 1e-5
