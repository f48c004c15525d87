"""Random models of many families, small enough to build in a test; tokenizer and Markov chains are decoding's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from tests.decoding.conftest import SPECIAL, chain, ids, tokenizer

__all__ = ["chain", "ids", "tokenizer"]


def random_model(family: str, vocabulary: int) -> Any:
    """Return a model with random weights whose logits differ widely, in float32 and without dropout at work."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "llama":
        config = LlamaConfig(
            **sizes, **SPECIAL, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=128,
            initializer_range=0.3,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    if family == "mistral":
        config = MistralConfig(
            **sizes, **SPECIAL, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=128,
            sliding_window=6, initializer_range=0.3,
        )  # fmt: skip
        return MistralForCausalLM(config).eval()
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, **SPECIAL
        )
        return GPT2LMHeadModel(config).eval()
    if family == "opt":
        config = OPTConfig(
            **sizes, **SPECIAL, ffn_dim=64, max_position_embeddings=128, word_embed_proj_dim=32, init_std=0.3
        )
        return OPTForCausalLM(config).eval()
    if family == "bloom":
        config = BloomConfig(
            vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, **SPECIAL
        )
        return BloomForCausalLM(config).eval()
    if family == "mamba":
        config = MambaConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, state_size=4, **SPECIAL)
        return MambaForCausalLM(config).eval()
    if family == "bart":
        config = BartConfig(
            vocab_size=vocabulary, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128,
            init_std=0.3, decoder_start_token_id=2, forced_eos_token_id=None, **SPECIAL,
        )  # fmt: skip
        return BartForConditionalGeneration(config).eval()
    config = T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0, initializer_factor=1.0, tie_word_embeddings=False,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def backbone_of(tokenizer):
    """A function from a family's name to a backbone with random weights, built once per session."""
    built: dict[str, Backbone] = {}

    def build(family: str) -> Backbone:
        if family not in built:
            form = "seq2seq" if family in ("t5", "bart") else "causal"
            model = random_model(family, len(tokenizer))
            built[family] = Backbone(
                model=model, tokenizer=tokenizer, form=form, config=ModelConfig(name=family), tasks=()
            )
        return built[family]

    return build
