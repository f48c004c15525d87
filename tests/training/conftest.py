"""A real Llama of a few thousand parameters and two tasks whose words name their origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from multitune.mixing.tokens import tokenise
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.tasks.task import Source, Task
from tests.small_llama import small_llama

WORDS = ["<pad>", "<eos>", *(f"a{i}" for i in range(20)), *(f"b{i}" for i in range(20)), *"pqrstu"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def make_model(dropout: float = 0.0) -> LlamaForCausalLM:
    return small_llama(len(WORDS), max_position_embeddings=64, attention_dropout=dropout)


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


def make_tables(tokenizer, folder: Path, sizes: dict[str, int], form: str = "causal"):
    tables = []
    for name, rows in sizes.items():
        lines = [
            {
                "input": " ".join("pqrstu"[: 1 + i % 6]),
                "target": " ".join([f"{name}{i % 20}"] * (1 + i % 8 * (name == "a"))),
            }
            for i in range(rows)
        ]
        task = write_task(folder, name, lines, kind="generate")
        tables.append(tokenise(task, "train", tokenizer, form, folder, max_length=32, cache=folder / "cache"))
    return tables


def write_task(folder: Path, name: str, lines: list[dict], **settings) -> Task:
    """Write rows with input and target as JSON lines and return their task."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Task(name=name, train=Source(path=f"{name}.jsonl"), prompt="{{ input }}", target="{{ target }}", **settings)
