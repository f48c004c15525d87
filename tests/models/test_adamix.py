"""AdaMix: one adapter is a plain one, training draws, inference averages."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from multitune.models.loading import Backbone
from multitune.models.tuners import register_tuners
from multitune.models.tuners.adamix import AdaMixConfig, AdaMixLayer
from multitune.models.tuners.bottleneck import BottleneckConfig
from multitune.training.losses import LossModule
from tests.models.conftest import small_model

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 13]])
BATCH = {
    "input_ids": IDS,
    "labels": IDS,
    "position_ids": torch.arange(5).expand(2, -1),
    "example_ids": torch.arange(2)[:, None].expand(-1, 5),
    "task_ids": torch.zeros(2, 5, dtype=torch.int64),
}


def adapted(config, family="llama"):
    torch.manual_seed(4)
    return get_peft_model(small_model(family), config)


def shake(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def trained(config):
    """Two steps as training makes them; returns the losses and what the model answers then."""
    model = adapted(config)
    losses = LossModule(Backbone(model, None, "causal", None)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(2):
        loss = losses(BATCH).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    with torch.no_grad():
        return found, model.eval()(input_ids=IDS).logits


def test_a_mixture_of_one_is_a_plain_adapter_to_the_bit():
    mixture, answers = trained(AdaMixConfig(r=3, n_modules=1, task_type="CAUSAL_LM"))
    plain, expected = trained(BottleneckConfig(r=3, task_type="CAUSAL_LM"))
    assert mixture == plain
    assert torch.equal(answers, expected)


def test_the_loss_is_that_of_one_pass_and_how_far_another_disagrees():
    model = adapted(AdaMixConfig(r=3, n_modules=3, task_type="CAUSAL_LM"))
    shake(model)
    losses = LossModule(Backbone(model, None, "causal", None))
    losses.eval()
    losses(BATCH)  # finds how hidden states are had
    losses.train()
    torch.manual_seed(0)
    found = losses(BATCH)
    torch.manual_seed(0)
    first, second = (torch.log_softmax(model(input_ids=IDS).logits[:, :-1].flatten(0, 1), dim=-1) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-2)
    nll = -first.gather(1, IDS[:, 1:].flatten()[:, None])[:, 0]
    divergence = ((first.exp() - second.exp()) * (first - second)).sum(-1) / 2
    torch.testing.assert_close(found, nll + divergence, atol=1e-5, rtol=1e-5)
    losses.eval()
    averaged = torch.log_softmax(model(input_ids=IDS).logits[:, :-1].flatten(0, 1), dim=-1)
    torch.testing.assert_close(losses(BATCH), -averaged.gather(1, IDS[:, 1:].flatten()[:, None])[:, 0])


def test_inference_averages_the_matrices():
    model = adapted(AdaMixConfig(r=3, n_modules=3))
    shake(model)
    layer = next(module for module in model.modules() if isinstance(module, AdaMixLayer))
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    parts = (layer.bottleneck_down, layer.bottleneck_down_bias, layer.bottleneck_up, layer.bottleneck_up_bias)
    down, down_bias, up, up_bias = (part["default"].mean(0) for part in parts)
    plain = layer.base_layer(hidden)
    torch.testing.assert_close(layer(hidden), plain + torch.relu(plain @ down.T + down_bias) @ up.T + up_bias)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_every_pass_draws_once_also_where_layers_are_computed_again(family):
    model = adapted(AdaMixConfig(r=2, n_modules=8, task_type="FEATURE_EXTRACTION"), family)
    shake(model)
    plain = model.base_model.model.train()
    layers = [module for module in model.modules() if isinstance(module, AdaMixLayer)]
    model.enable_input_require_grads()
    plain.gradient_checkpointing_enable({"use_reentrant": False})
    more = {"labels": IDS} if plain.config.is_encoder_decoder else {}
    out = plain(input_ids=IDS, **more)
    drawn = [layer.drawn["default"] for layer in layers]
    assert len(set(drawn)) > 1
    (out.logits if "logits" in out else out.last_hidden_state)[..., 3].sum().backward()
    assert [layer.drawn["default"] for layer in layers] == drawn
    for layer in layers:  # of the other adapters nothing was read
        read = layer.bottleneck_up_bias["default"].grad.abs().sum(1) > 0
        assert read.nonzero().flatten().tolist() == [layer.drawn["default"][1]]
    plain(input_ids=IDS, **more)
    assert [layer.drawn["default"] for layer in layers] != drawn


def test_unloading_ends_the_draws():
    model = adapted(AdaMixConfig(r=2))
    base = model.unload()
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_a_mixture_of_none_is_refused():
    with pytest.raises(ValueError, match="n_modules"):
        AdaMixConfig(n_modules=0)
