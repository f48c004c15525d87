"""A real Llama of a few thousand parameters and two tasks whose words name their origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from multitune.mixing.tokens import tokenise
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.tasks.task import Source, Task

WORDS = ["<pad>", "<eos>", *(f"a{i}" for i in range(20)), *(f"b{i}" for i in range(20)), *"pqrstu"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def make_model(dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        attention_dropout=dropout,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def backbone(tokenizer) -> Backbone:
    return Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"), ())


@pytest.fixture(scope="session")
def tables(tokenizer, tmp_path_factory):
    """Task "a" (40 rows of 2-9 words) and task "b" (10 rows of 1 word), both in tokens."""
    return make_tables(tokenizer, tmp_path_factory.mktemp("tables"), {"a": 40, "b": 10})


@pytest.fixture(scope="session")
def validation(tokenizer, tmp_path_factory):
    """Rows like those of the training tables: 7 of task "a" and 3 of task "b"."""
    return make_tables(tokenizer, tmp_path_factory.mktemp("validation"), {"a": 7, "b": 3})


def make_tables(tokenizer, folder: Path, sizes: dict[str, int]):
    tables = []
    for name, rows in sizes.items():
        lines = [
            {
                "input": " ".join("pqrstu"[: 1 + i % 6]),
                "target": " ".join([f"{name}{i % 20}"] * (1 + i % 8 * (name == "a"))),
            }
            for i in range(rows)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        task = Task(
            name=name,
            train=Source(path=f"{name}.jsonl"),
            kind="generate",
            prompt="{{ input }}",
            target="{{ target }}",
        )
        tables.append(tokenise(task, "train", tokenizer, "causal", folder, max_length=32, cache=folder / "cache"))
    return tables
