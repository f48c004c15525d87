"""Half fine-tuning under other trainers: direct preference optimisation with trl's own trainer."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from multitune.adaptation import HalfConfig, freeze, half_round
from tests.small_llama import small_llama

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed"),
    pytest.mark.filterwarnings("ignore"),  # trl's and datasets' own
]

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(20))]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    return Dataset.from_list(
        [{"prompt": f"w{i} w{i + 1}", "chosen": f" w{i + 2} w3", "rejected": f" w{i + 4} w5"} for i in range(8)]
    )


def trained(model: Any, reference: Any, tokenizer: Any, pairs: Dataset, folder: Path, weight_decay: float = 0.1) -> Any:
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=4,
        beta=0.1,
        learning_rate=1e-2,
        weight_decay=weight_decay,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=0,
    )
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=arguments, train_dataset=pairs, processing_class=tokenizer
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def test_the_frozen_half_and_the_reference_stay_as_they_were(tmp_path, tokenizer, pairs) -> None:
    model, reference = small_llama(len(WORDS)), small_llama(len(WORDS))
    half = half_round(model, HalfConfig(), seed=0)
    freeze(model, half)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(2, 14).reshape(2, 6)
    with torch.no_grad():
        reference_before = reference(input_ids=ids).logits.log_softmax(-1)
    trainer = trained(model, reference, tokenizer, pairs, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in half.frozen), name
        assert (parameter.grad is None) or name not in half.frozen
    known = {id(p) for p in trainer.optimizer.state}
    assert known == {id(p) for name, p in model.named_parameters() if name not in half.frozen}
    reference.eval()
    with torch.no_grad():
        assert torch.equal(reference(input_ids=ids).logits.log_softmax(-1), reference_before)
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses(trainer)[-1] < 0.65


def test_an_implicit_reference_is_the_model_before_the_round(tmp_path, tokenizer, pairs) -> None:
    """trl reads it anew from where the model came from."""
    small_llama(len(WORDS)).save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    freeze(model, half_round(model, HalfConfig(), seed=0))
    trainer = trained(model, None, tokenizer, pairs, tmp_path / "run")
    reference = dict(trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters())
    assert all(torch.equal(reference[name], start[name]) for name in start)
    assert any(not torch.equal(p, start[name]) for name, p in model.named_parameters())


def test_the_loss_stays_at_log_2_where_everything_is_frozen(tmp_path, tokenizer, pairs) -> None:
    """A trainer wants something to train: the embeddings, whose gradient is taken away."""
    model, reference = small_llama(len(WORDS)), small_llama(len(WORDS))
    freeze(model, half_round(model, HalfConfig(fraction=0.0), seed=0))
    for parameter in (model.lm_head.weight, model.model.norm.weight):
        parameter.requires_grad_(False)
    model.model.embed_tokens.weight.register_hook(torch.zeros_like)
    trainer = trained(model, reference, tokenizer, pairs, tmp_path, weight_decay=0.0)
    assert losses(trainer) == pytest.approx([math.log(2)] * 4, abs=1e-6)
