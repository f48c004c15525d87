"""Recipes over small real files and a real model of a few thousand parameters, saved to disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.small_llama import small_llama


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A Llama with random weights and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [], trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    small_llama(len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    """Three tasks as JSON lines: sign (label), echo (generate) and, held out, mark (label)."""
    for name, rows in (("train", 24), ("test", 6)):
        sign = [{"text": f"number {i - 5}", "label": "minus" if i < 5 else "plus"} for i in range(rows)]
        echo = [{"input": f"say {i}", "target": str(i)} for i in range(rows)]
        for task, lines in (("sign", sign), ("echo", echo), ("mark", sign)):
            path = tmp_path / "data" / task / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def recipe(data, model_folder):
    """The recipe as plain values; change it, then call ``write``."""
    return {
        "name": "small",
        "model": str(model_folder),
        "tasks": {
            "sign": {
                "train": "data/sign/train.jsonl",
                "test": "data/sign/test.jsonl",
                "kind": "label",
                "prompt": "{{ text }}:",
                "target": "{{ label }}",
                "choices": ["minus", "plus"],
            },
            "echo": {"train": "data/echo/train.jsonl", "test": "data/echo/test.jsonl", "max_new_tokens": 4},
            "mark": {
                "test": "data/mark/test.jsonl",
                "held_out": True,
                "kind": "label",
                "prompt": "{{ text }}:",
                "target": "{{ label }}",
                "choices": ["minus", "plus"],
            },
        },
        "steps": {
            "joint": {
                "do": "train",
                "adapt": {"method": "lora", "r": 2},
                "training": {"steps": 3, "batch_size": 4, "max_length": 64, "learning_rate": 1e-2, "logging_steps": 1},
            }
        },
    }


@pytest.fixture
def write(data):
    def write(recipe) -> Path:
        path = data / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
