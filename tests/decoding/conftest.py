"""Models whose answers are known, and random ones, with a byte-level tokenizer; small enough to build in a test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that texts can be told letter by letter."""
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bare = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def ids(tokenizer):
    """Token ids of a text."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def chain(tokenizer):
    """Makes a Llama that is a Markov chain over letters: {"a": {"b": 0.75, "</s>": 0.25}} and so on.

    Embeddings are one-hot and the block adds nothing, so that the head's column of a token holds its successors'
    log-probabilities.
    """

    def make(successors: dict[str, dict[str, float]], positions: int = 64) -> Backbone:
        width = 4 * (len(tokenizer) // 4 + 1)
        config = LlamaConfig(
            vocab_size=width, hidden_size=width, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=positions, rms_norm_eps=1e-12, **SPECIAL,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        log_p_VV = torch.full((width, width), -50.0)
        for letter, after in successors.items():
            for follower, probability in after.items():
                place = tokenizer.convert_tokens_to_ids(follower), tokenizer.convert_tokens_to_ids(letter)
                log_p_VV[place] = torch.tensor(probability).log()
        with torch.no_grad():
            model.model.layers[0].self_attn.o_proj.weight.zero_()
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(width))
            model.lm_head.weight.copy_(log_p_VV / width**0.5)
        return Backbone(model=model, tokenizer=tokenizer, form="causal", config=ModelConfig(name="chain"))

    return make


@pytest.fixture(scope="session")
def random_backbone(tokenizer):
    """Makes a model with random weights wide enough apart that no two tokens tie."""

    def make(family: str) -> Backbone:
        torch.manual_seed(0)
        words = len(tokenizer)
        model: Any
        if family == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=words, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, **SPECIAL,
                )
            )  # fmt: skip
        elif family == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=words, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, **SPECIAL
                )
            )
        else:
            model = BartForConditionalGeneration(
                BartConfig(
                    vocab_size=words, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                    decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
                    init_std=0.3, decoder_start_token_id=2, forced_eos_token_id=None, **SPECIAL,
                )
            )  # fmt: skip
        form = "seq2seq" if family == "bart" else "causal"
        return Backbone(model=model.eval(), tokenizer=tokenizer, form=form, config=ModelConfig(name=family))

    return make
