"""Validation losses during training: right, without influence on training, and a reason to stop that survives kills."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import TrainerState

from multitune.errors import MultituneError
from multitune.mixing.policies import Proportional
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.training import train as training
from multitune.training.config import TrainingConfig
from multitune.training.evaluation import Evaluation
from multitune.training.interrupts import Interrupted
from tests.training.conftest import make_model
from tests.training.test_train import SETTINGS, assert_same_weights, with_signal_at

EVALUATED = {"eval_steps": 2, "eval_rows": None}


def run(folder, tables, validation, tokenizer, **settings):
    backbone = Backbone(make_model(dropout=0.2), tokenizer, "causal", ModelConfig(name="toy"), ())
    config = TrainingConfig(**{**SETTINGS, **settings})
    result = training.train(backbone, tables, Proportional(), config, folder, seed=0, validation=validation)
    return backbone.model.state_dict(), result


def evaluations(folder):
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def test_evaluating_changes_nothing_and_says_the_loss_of_every_task(tmp_path, tables, validation, tokenizer):
    plain, _ = run(tmp_path / "plain", tables, [], tokenizer)
    evaluated, _ = run(tmp_path / "evaluated", tables, validation, tokenizer, **EVALUATED)
    assert_same_weights(plain, evaluated)
    told = evaluations(tmp_path / "evaluated")
    assert [record["step"] for record in told] == [0, 2, 4, 6]
    assert told[-1]["loss"] == pytest.approx(sum(told[-1]["tasks"].values()) / 2)
    model = make_model()
    model.load_state_dict(evaluated)
    for table, loss in zip(validation, told[-1]["tasks"].values(), strict=True):
        assert loss == pytest.approx(token_mean(model, table), abs=1e-5)


def token_mean(model, table):
    """The mean negative log-likelihood over a table's labelled tokens, row by row with the model's own loss."""
    total = count = 0.0
    for index in range(len(table)):
        row = table.row(index)
        ids, labels = (torch.tensor(row[name], dtype=torch.long)[None] for name in ("input_ids", "labels"))
        labelled = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * labelled
        count += labelled
    return total / count


def test_training_stops_when_the_loss_falls_no_more_and_keeps_the_best_weights(tmp_path, tables, validation, tokenizer):
    settings = {**EVALUATED, "steps": 40, "learning_rate": 0.3, "schedule": "constant", "early_stopping_patience": 2}
    weights, result = run(
        tmp_path, tables, validation, tokenizer, load_best_model_at_end=True, max_grad_norm=0.0, **settings
    )
    told = {record["step"]: record["loss"] for record in evaluations(tmp_path)}
    best = min(told, key=told.get)
    assert result.steps == max(told) == best + 4 < 40
    again, result = run(
        tmp_path, tables, validation, tokenizer, load_best_model_at_end=True, max_grad_norm=0.0, **settings
    )
    assert_same_weights(weights, again)  # the finished run is not trained further
    assert result.steps == max(told)
    model = make_model()
    model.load_state_dict(weights)
    means = [token_mean(model, table) for table in validation]
    assert sum(means) / 2 == pytest.approx(told[best], abs=1e-5)


def test_a_killed_run_stops_where_the_undisturbed_one_does(tmp_path, tables, validation, tokenizer):
    settings = {**EVALUATED, "steps": 30, "learning_rate": 0.3, "schedule": "constant", "max_grad_norm": 0.0}
    settings |= {"early_stopping_patience": 2, "load_best_model_at_end": True}
    undisturbed, result = run(tmp_path / "1", tables, validation, tokenizer, **settings)
    with pytest.raises(Interrupted):
        with_signal_at(3, run, tmp_path / "2", tables, validation, tokenizer, **settings)
    resumed, resumed_result = run(tmp_path / "2", tables, validation, tokenizer, **settings)
    assert resumed_result.steps == result.steps
    assert evaluations(tmp_path / "1") == evaluations(tmp_path / "2")
    assert_same_weights(undisturbed, resumed)
    assert all(math.isfinite(record["loss"]) for record in evaluations(tmp_path / "2"))


@pytest.mark.parametrize("key", ["early_stopping_patience", "load_best_model_at_end"])
def test_what_needs_validation_losses_says_so(key):
    with pytest.raises(ValueError, match="set eval_steps too"):
        TrainingConfig(**{key: 1})


def test_a_validation_loss_that_is_no_number_stops_with_the_tasks_name(tmp_path):
    losses = iter([torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.inf])])
    evaluation = Evaluation(
        tmp_path, ["a", "b"], lambda: next(losses), every=1, patience=None, keep_best=False, resumed_step=0
    )
    model = make_model()
    evaluation.on_train_begin(None, TrainerState(), None, model=model)
    with pytest.raises(MultituneError, match="The validation loss of b is not a finite number"):
        evaluation.on_step_end(None, TrainerState(global_step=1, max_steps=2), None, model=model)
    assert [record["step"] for record in evaluations(tmp_path)] == [0]
