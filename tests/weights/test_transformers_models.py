"""Merged folders load with transformers, and adapters mean what peft means."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from multitune.weights.config import MergeConfig
from multitune.weights.merging import merge
from tests.small_llama import small_llama

MODELS: dict[str, Any] = {
    "llama": lambda: small_llama(20),
    "llama, tied": lambda: small_llama(20, tie_word_embeddings=True),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2)),
    "bert": lambda: BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    ),
}


def save(model: torch.nn.Module, folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Give a model random weights of a seed and save it in several shards; return its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, max_shard_size="4KB")
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", MODELS)
def test_a_merge_loads_as_its_models_do(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    weights = [save(model, tmp_path / str(seed), seed) for seed in range(3)]
    config = MergeConfig(
        method="task_arithmetic",
        base=str(tmp_path / "0"),
        models=[str(tmp_path / "1"), str(tmp_path / "2")],
        parameters={"weight": 0.5},
    )
    merge(config, tmp_path / "out")
    loaded, told = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in loaded.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (weights[1][name] + weights[2][name]) / 2)
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is type(AutoModel.from_pretrained(tmp_path / "0"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft 0.21 asks transformers 5.23
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
        ("llama", {"target_modules": ["v_proj", "embed_tokens"], "alpha_pattern": {"v_proj": 7}}),
        ("llama", {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ],
)
def test_an_adapter_adds_what_peft_adds(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = MODELS[kind]()
    save(model, tmp_path / "base", 0)
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        adapted.save_pretrained(tmp_path / "adapter")
    config = MergeConfig(method="task_arithmetic", base=str(tmp_path / "base"), models=[str(tmp_path / "adapter")])
    merge(config, tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    theirs = adapted.merge_and_unload().state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-5)


def test_the_union_of_tokenizers_is_one_that_loads(tmp_path: Path) -> None:
    for name, words in (("base", "u a b c"), ("one", "u c d"), ("two", "u e a")):
        vocabulary = {word: number for number, word in enumerate(words.split())}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="u"))
        tokenizer.pre_tokenizer = Whitespace()
        save(small_llama(len(vocabulary)), tmp_path / name, len(words))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="u").save_pretrained(tmp_path / name)
    config = MergeConfig(
        method="linear", models=[str(tmp_path / name) for name in ("base", "one", "two")], vocabulary="union"
    )
    merge(config, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a b c d e").input_ids == [1, 2, 3, 4, 5]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.get_input_embeddings().num_embeddings == 6
    of_two = AutoModelForCausalLM.from_pretrained(tmp_path / "two").get_input_embeddings().weight
    # "e" is known to one model alone, and the others count as its row
    torch.testing.assert_close(merged.get_input_embeddings().weight[5], of_two[1])
