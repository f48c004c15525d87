"""Small random models of several architectures, and a tokenizer that fits them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 97
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,  # so that project_in and project_out exist
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "t5": {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
}
WIDTHS["cohere"] = WIDTHS["llama"] | {"logit_scale": 0.3}
WIDTHS["granite"] = WIDTHS["llama"] | {"logits_scaling": 4.0}
WIDTHS["gemma2"] = WIDTHS["llama"] | {"final_logit_softcapping": 0.5}
WIDTHS["recurrent_gemma"] = WIDTHS["llama"] | {"lru_width": 32}
WIDTHS |= dict.fromkeys(("qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "phi3", "olmo2"), WIDTHS["llama"])
WIDTHS |= dict.fromkeys(("mt5", "umt5", "longt5"), WIDTHS["t5"])
SEQUENCE_TO_SEQUENCE = {"t5", "mt5", "umt5", "longt5", "bart"}


def small_model(family: str, **options: Any) -> Any:
    """Return a random model in evaluation mode; its weights are larger than by default, so that attention matters."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **{**IDS, **WIDTHS[family], **options})
    auto = AutoModelForCausalLM
    if family in SEQUENCE_TO_SEQUENCE:
        auto = AutoModelForSeq2SeqLM
    elif family == "bert":
        auto = AutoModel
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def small_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of VOCABULARY words: w3, w4, ..."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def make_model() -> Callable[..., Any]:
    return small_model


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return small_tokenizer


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a small model with its tokenizer and gives the folder."""

    def save(family: str, **options: Any) -> Path:
        folder = tmp_path / family
        small_model(family, **options).save_pretrained(folder)
        small_tokenizer(pad_token="<pad>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
        return folder

    return save
