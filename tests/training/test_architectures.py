"""Encoder-decoders and encoders learn; gradient checkpointing changes memory and speed, not results."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from multitune.adaptation.adapting import adapt
from multitune.adaptation.config import AdaptationConfig
from multitune.mixing.policies import Proportional
from multitune.mixing.tokens import tokenise
from multitune.models.config import ModelConfig
from multitune.models.heads import encoder_with_heads
from multitune.models.loading import Backbone
from multitune.scoring.heads import head_predictions
from multitune.training import train as training
from multitune.training.config import TrainingConfig
from tests.training.conftest import WORDS, make_model, make_tables, write_task

SETTINGS = {"steps": 30, "batch_size": 10, "max_length": 32, "learning_rate": 3e-3, "logging_steps": 10}


def train(backbone: Backbone, tables, folder, **settings):
    config = TrainingConfig(**{**SETTINGS, **settings})
    training.train(backbone, tables, Proportional(), config, folder, seed=0)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def small_t5(dropout: float = 0.1) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS), d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1, dropout_rate=dropout,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def small_encoder(tasks):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0,
    )  # fmt: skip
    return encoder_with_heads(BertModel(config), tasks, seed=0)


def encoder_tasks(tokenizer, folder):
    """One label task, told by the word, and their token tables."""
    lines = [{"input": f"p {'a3' if i % 2 else 'b3'} q", "target": "yes" if i % 2 else "no"} for i in range(40)]
    task = write_task(folder, "sign", lines, kind="label", choices=("no", "yes"))
    table = tokenise(task, "train", tokenizer, "encoder", folder, max_length=32, cache=folder / "cache")
    return [task], [table]


def test_an_encoder_decoder_learns_and_counts_its_targets(tmp_path, tokenizer):
    tables = make_tables(tokenizer, tmp_path, {"a": 40, "b": 10}, "seq2seq")
    log = train(Backbone(small_t5(), tokenizer, "seq2seq", ModelConfig(name="toy")), tables, tmp_path / "1")
    for name in "ab":
        assert log[-1]["tasks"][name]["loss"] < 0.9 * log[0]["tasks"][name]["loss"]


def test_an_encoder_decoder_accumulates_alike(tmp_path, tokenizer):
    tables = make_tables(tokenizer, tmp_path, {"a": 40, "b": 10}, "seq2seq")
    results = []
    for rows in (4, 1):
        backbone = Backbone(small_t5(dropout=0.0), tokenizer, "seq2seq", ModelConfig(name="toy"))
        settings = {"steps": 4, "batch_size": 4, "micro_batch_size": rows, "logging_steps": 1}
        log = train(backbone, tables, tmp_path / str(rows), **settings)
        results.append([line["loss"] for line in log])
    assert results[0] == pytest.approx(results[1], abs=1e-4)


def test_an_encoder_learns_a_label(tmp_path, tokenizer):
    tasks, tables = encoder_tasks(tokenizer, tmp_path)
    backbone = Backbone(small_encoder(tasks), tokenizer, "encoder", ModelConfig(name="toy"), tuple(tasks))
    log = train(backbone, tables, tmp_path / "1", learning_rate=1e-2)
    assert log[-1]["loss"] < 0.1 < log[0]["loss"]


def test_a_task_in_thousands_is_learned_beside_one_in_units_and_told_in_its_own(tmp_path, tokenizer):
    tasks, tables = [], []
    for name, unit in (("thousands", 1000.0), ("units", 1.0)):
        lines = [{"input": f"p {'a3' if i % 2 else 'b3'} q", "target": (8 + i % 2) * unit} for i in range(40)]
        tasks.append(write_task(tmp_path, name, lines, kind="regress"))
        tables.append(tokenise(tasks[-1], "train", tokenizer, "encoder", tmp_path, max_length=32, cache=tmp_path / "c"))
    backbone = Backbone(small_encoder(tasks), tokenizer, "encoder", ModelConfig(name="toy"), tuple(tasks))
    log = train(backbone, tables, tmp_path / "1", learning_rate=1e-2)
    assert [log[0]["tasks"][task.name]["loss"] < 2 for task in tasks] == [True, True]
    prompts = [tokenizer(f"p {word} q").input_ids for word in ("b3", "a3")]
    assert head_predictions(backbone, "thousands", prompts) == pytest.approx([8000, 9000], abs=300)
    assert head_predictions(backbone, "units", prompts) == pytest.approx([8, 9], abs=0.3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_recomputed_activations_change_nothing(tmp_path, tables, tokenizer, method):
    weights, logs = [], []
    for checkpointing in (False, True):
        backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"))
        backbone = adapt(backbone, AdaptationConfig(method=method))
        settings = {"steps": 3, "logging_steps": 1, "gradient_checkpointing": checkpointing}
        logs.append(train(backbone, tables, tmp_path / str(checkpointing), **settings))
        weights.append({n: p.detach() for n, p in backbone.model.named_parameters() if p.requires_grad})
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], abs=1e-5)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0, msg=name)


def test_an_encoder_recomputes_its_activations(tmp_path, tokenizer):
    tasks, tables = encoder_tasks(tokenizer, tmp_path)
    losses = []
    for checkpointing in (False, True):
        backbone = Backbone(small_encoder(tasks), tokenizer, "encoder", ModelConfig(name="toy"), tuple(tasks))
        settings = {"steps": 3, "logging_steps": 1, "gradient_checkpointing": checkpointing}
        losses.append([line["loss"] for line in train(backbone, tables, tmp_path / str(checkpointing), **settings)])
        assert backbone.model.encoder.is_activation_checkpointing is checkpointing
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
