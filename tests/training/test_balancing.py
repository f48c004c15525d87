"""Balancers in the loop: the same values however a step is split, the same run after a kill, the log that tells."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from multitune.mixing.policies import Proportional
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.objectives.balancing.balancers import BALANCERS
from multitune.training import train as training
from multitune.training.config import TrainingConfig
from multitune.training.interrupts import Interrupted
from multitune.training.task_gradients import TaskGradients
from tests.training.conftest import make_model
from tests.training.test_train import SETTINGS, assert_same_weights, with_signal_at

SOON = {"coba": {"warmup_steps": 2, "window": 4}}  # so that six steps are enough to leave the warm-up
ALIKE = ("uniform", "uncertainty")  # in few steps Adam moves the log-variances of tasks of similar losses alike
CONFIGS = [
    *({"method": method, **SOON.get(method, {})} for method in BALANCERS),
    {"method": "famo", "losses": "training"},
    {"method": "coba", "variant": "paper", "update_interval": 2, **SOON["coba"]},
]


def name_of(config):
    return "-".join(str(value) for value in config.values())


def run(folder, tables, validation, tokenizer, dropout=0.0, **settings):
    backbone = Backbone(make_model(dropout), tokenizer, "causal", ModelConfig(name="toy"), ())
    config = TrainingConfig(**{**SETTINGS, **settings})
    training.train(backbone, tables, Proportional(), config, folder, seed=0, validation=validation)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return backbone.model.state_dict(), log


@pytest.mark.parametrize("balancer", CONFIGS, ids=name_of)
def test_a_balancer_weighs_alike_however_the_step_is_split(tmp_path, tables, validation, tokenizer, balancer):
    whole, log = run(tmp_path / "1", tables, validation, tokenizer, balancer=balancer, micro_batch_size=4)
    split, log_split = run(tmp_path / "2", tables, validation, tokenizer, balancer=balancer, micro_batch_size=1)
    plain, _ = run(tmp_path / "3", tables, validation, tokenizer, micro_batch_size=4)
    assert_same_weights(whole, split, tolerance=1e-4)
    differs = any(not torch.allclose(whole[name], plain[name], atol=1e-4) for name in whole)
    assert differs == (balancer["method"] not in ALIKE)
    for one, many in zip(log, log_split, strict=True):
        assert sum(one["weights"].values()) == pytest.approx(1.0)
        assert one["weights"] == pytest.approx(many["weights"], abs=1e-4)
        assert one["loss"] == pytest.approx(many["loss"], abs=1e-4)


@pytest.mark.parametrize("balancer", CONFIGS, ids=name_of)
def test_a_killed_run_goes_on_with_the_balancers_state(tmp_path, tables, validation, tokenizer, balancer):
    settings = {"dropout": 0.2, "balancer": balancer, "micro_batch_size": 2}
    undisturbed, log = run(tmp_path / "1", tables, validation, tokenizer, **settings)
    with pytest.raises(Interrupted):
        with_signal_at(4, run, tmp_path / "2", tables, validation, tokenizer, **settings)
    resumed, resumed_log = run(tmp_path / "2", tables, validation, tokenizer, **settings)
    assert_same_weights(undisturbed, resumed)
    for line, again in zip(log, resumed_log, strict=True):
        assert (line["loss"], line["weights"]) == (again["loss"], again["weights"])


def test_uniform_weights_are_those_of_the_task_mean(tmp_path, tables, validation, tokenizer):
    plain, log = run(tmp_path / "1", tables, validation, tokenizer)
    uniform, uniform_log = run(tmp_path / "2", tables, validation, tokenizer, balancer="uniform")
    assert_same_weights(plain, uniform)
    assert [line["loss"] for line in log] == [line["loss"] for line in uniform_log]


def test_validation_losses_that_are_observed_do_not_disturb_dropout(tmp_path, tables, validation, tokenizer):
    """During its warm-up CoBa weighs uniformly: what it evaluates must leave no trace."""
    plain, _ = run(tmp_path / "1", tables, validation, tokenizer, dropout=0.2)
    coba, _ = run(tmp_path / "2", tables, validation, tokenizer, dropout=0.2, balancer="coba")
    assert_same_weights(plain, coba)


@pytest.mark.parametrize("level", ["sample", "task"])
def test_focal_losses_have_one_value_however_the_step_is_split(tmp_path, tables, tokenizer, level):
    settings = {"focal": {"level": level}, "aggregation": "task_sample_mean"}
    whole, log = run(tmp_path / "1", tables, [], tokenizer, micro_batch_size=4, **settings)
    split, log_split = run(tmp_path / "2", tables, [], tokenizer, micro_batch_size=1, **settings)
    assert_same_weights(whole, split, tolerance=2e-5)
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in log_split], abs=1e-5)


def test_a_focal_loss_of_gamma_0_is_the_plain_mean(tmp_path, tables, tokenizer):
    plain, _ = run(tmp_path / "1", tables, [], tokenizer, aggregation="task_sample_mean")
    settings = {"focal": {"level": "task", "gamma": 0}, "aggregation": "task_sample_mean"}
    focal, _ = run(tmp_path / "2", tables, [], tokenizer, **settings)
    assert_same_weights(plain, focal, tolerance=2e-5)


def test_equal_coefficients_give_the_gradient_of_the_mean():
    torch.manual_seed(0)
    shared, head = nn.Linear(3, 2), nn.Linear(2, 3)
    inputs, targets = torch.randn(6, 3), torch.randn(6, 3)
    gradients = TaskGradients(list(shared.parameters()), list(head.parameters()), tasks=4, reduce=None)

    def losses(part):
        errors = (head(shared(inputs[part]).tanh()) - targets[part]).square().mean(0)
        return torch.cat((errors, torch.zeros(1))) / 2  # the fourth task is absent

    present_T = torch.tensor([True, True, True, False])
    for part in (slice(0, 3), slice(3, 6)):  # two micro-batches
        gradients.add(losses(part))
    seen = {}

    def third_each(gram_TT):
        seen["gram"] = gram_TT
        return present_T / 3

    gradients.combine(third_each, present_T)
    expected = torch.autograd.grad(
        (losses(slice(0, 3)) + losses(slice(3, 6))).sum() / 3, [*shared.parameters(), *head.parameters()]
    )
    for parameter, gradient in zip([*shared.parameters(), *head.parameters()], expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert torch.equal(seen["gram"][3], torch.zeros(4, dtype=torch.float64))


def test_what_no_loss_reaches_gets_no_gradient():
    """So that weight decay leaves it alone, as it does with one backward pass."""
    used, unused, head, unused_head = (nn.Parameter(torch.ones(2)) for _ in range(4))
    gradients = TaskGradients([used, unused], [head, unused_head], tasks=2, reduce=None)
    gradients.add(torch.stack(((used * head).sum(), used.sum())))
    gradients.combine(lambda gram_TT: torch.tensor([0.5, 0.5]), torch.tensor([True, True]))
    assert used.grad is not None and head.grad is not None
    assert unused.grad is None and unused_head.grad is None
    gradients.add(torch.stack((unused.sum(), used.sum())))  # the next step begins anew
    gradients.combine(lambda gram_TT: torch.tensor([0.5, 0.5]), torch.tensor([True, True]))
    assert unused.grad.tolist() == [0.5, 0.5] and head.grad is None


@pytest.mark.parametrize("method", ["pcgrad", "coba", "famo"])
def test_a_task_of_weight_0_takes_no_part_in_the_balance(tmp_path, tables, validation, tokenizer, method):
    balancer = {"method": method, **SOON.get(method, {})}
    settings = {"balancer": balancer, "task_weights": {"a": 0}, "batch_size": 8}
    _, log = run(tmp_path, tables, validation, tokenizer, **settings)
    for line in log:
        assert line["tasks"]["a"]["tokens"] > 0
        assert line["weights"]["b"] == pytest.approx(1.0)


def test_the_pace_of_a_task_is_that_of_its_plain_loss(tmp_path, tables, validation, tokenizer, monkeypatch):
    """The user's weights and which tasks share a step scale what is minimised, and not what GradNorm's ratios read."""
    seen = []

    class Watched(BALANCERS["gradnorm"]):
        def coefficients(self, gram_TT, loss_T, present_T):
            seen.append([loss for loss in loss_T.tolist() if not math.isnan(loss)])
            return super().coefficients(gram_TT, loss_T, present_T)

    monkeypatch.setitem(BALANCERS, "gradnorm", Watched)
    settings = {"balancer": "gradnorm", "task_weights": {"a": 5}, "batch_size": 2, "pack": "never"}
    _, log = run(tmp_path, tables, validation, tokenizer, **settings)
    assert {len(losses) for losses in seen} == {1, 2}
    for line, losses in zip(log, seen, strict=True):
        assert losses == pytest.approx([task["loss"] for task in line["tasks"].values()], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balancer": "coba", "aggregation": "token_mean"}, "no effect with the aggregation token_mean"),
        ({"balancer": "pcgrad", "precision": "float16"}, "float16"),
        ({"focal": {"level": "task"}}, "set aggregation so"),
        (
            {"focal": {"level": "task"}, "aggregation": "task_sample_mean", "balancer": "nash"},
            "combines the gradients of plain losses",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)
