"""The load-balancing loss of models with experts."""

from __future__ import annotations

import pytest
import torch

from multitune.errors import MultituneError
from multitune.mixing.policies import Proportional
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.training import train as training
from multitune.training.config import TrainingConfig
from tests.training.conftest import WORDS, make_model
from tests.training.test_architectures import SETTINGS, train


def mixture_of_experts(tokenizer, **config):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, max_position_embeddings=64, **config,
    )  # fmt: skip
    return Backbone(MixtralForCausalLM(config), tokenizer, "causal", ModelConfig(name="toy"))


def test_the_router_loss_is_that_of_transformers(tmp_path, tables, tokenizer):
    """The first logged loss exceeds that without it by what the model itself would add."""
    settings = {"steps": 1, "logging_steps": 1, "batch_size": 4, "micro_batch_size": 4, "pack": "never"}
    (plain,) = train(mixture_of_experts(tokenizer), tables, tmp_path / "0", **settings)
    backbone = mixture_of_experts(tokenizer, output_router_logits=True, router_aux_loss_coef=0.5)
    (asked,) = train(backbone, tables, tmp_path / "1", **settings)
    (given,) = train(mixture_of_experts(tokenizer), tables, tmp_path / "2", router_loss=0.5, **settings)
    (none,) = train(
        mixture_of_experts(tokenizer, output_router_logits=True), tables, tmp_path / "3", router_loss=0, **settings
    )
    config = TrainingConfig(**{**SETTINGS, **settings})
    fresh = mixture_of_experts(tokenizer, output_router_logits=True)
    batch = training.make_batches(fresh, tables, Proportional(), config, 0)[0]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": (batch["example_ids"] >= 0).long()}
    expected = 0.5 * fresh.model(**inputs).aux_loss.item()
    assert asked["loss"] - plain["loss"] == pytest.approx(expected, abs=1e-5)
    assert given["loss"] == pytest.approx(asked["loss"], abs=1e-6)
    assert none["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    assert asked["tasks"] == plain["tasks"]


def test_the_router_loss_balances_the_experts_and_leaves_the_model_as_it_was(tmp_path, tables, tokenizer):
    loads = []
    for coefficient in (0.0, 10.0):
        backbone = mixture_of_experts(tokenizer)
        with torch.no_grad():
            for layer in backbone.model.model.layers:
                layer.mlp.gate.weight[0] += 1.0  # so that one expert gets most of the tokens, or hardly any
        train(backbone, tables, tmp_path / str(coefficient), steps=20, router_loss=coefficient, learning_rate=1e-2)
        assert backbone.model.config.output_router_logits is False
        ids = torch.arange(2, len(WORDS))[None]
        loads.append(backbone.model(input_ids=ids, output_router_logits=True).aux_loss.item())
    assert loads[1] < loads[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"router_loss": 0.1}, "no router whose load could be balanced"),
        ({"router_loss": 0.1, "balancer": "pcgrad"}, "belongs to none"),
    ],
)
def test_a_router_loss_that_cannot_be(tmp_path, tables, tokenizer, settings, message):
    backbone = (
        mixture_of_experts(tokenizer)
        if "balancer" in settings
        else Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"))
    )
    with pytest.raises(MultituneError, match=message):
        train(backbone, tables, tmp_path, steps=1, **settings)
