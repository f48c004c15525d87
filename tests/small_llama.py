"""A Llama of a few thousand parameters with random weights, for tests that need a real causal model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(vocabulary: int, **changes: Any) -> LlamaForCausalLM:
    """Return the model; ``changes`` are fields of its config."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes | changes))
