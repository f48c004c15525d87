"""Binary masks and diff pruning: what the weights become, to the entry."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from multitune.models.tuners import register_tuners
from multitune.models.tuners.binary_mask import BinaryMaskConfig, BinaryMaskLayer
from multitune.models.tuners.diff_pruning import DiffPruningConfig, DiffPruningLayer
from tests.models.conftest import small_model

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 13]])


def adapted(config, family="llama"):
    return get_peft_model(small_model(family), config)


def layers_of(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def output_of(model):
    more = {"labels": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        out = model(input_ids=IDS, **more)
    return out.logits if "logits" in out else out.last_hidden_state


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("kind", ["mask", "diff"])
def test_the_base_at_the_start_another_model_later_and_the_base_again(family, kind):
    base = output_of(small_model(family))
    model = adapted(BinaryMaskConfig() if kind == "mask" else DiffPruningConfig(), family)
    plain = model.base_model.model
    assert torch.equal(output_of(plain), base)
    model.eval()
    for place, layer in enumerate(layers_of(model, BinaryMaskLayer if kind == "mask" else DiffPruningLayer)):
        trained = layer.mask_scores if kind == "mask" else layer.diff_values
        trained["default"].data = 0.1 * draw(trained["default"].shape, place)
    moved = output_of(plain)
    assert not torch.allclose(moved, base, atol=1e-2)
    kept = {name: p.clone() for name, p in plain.named_parameters()}
    model.train()
    model.merge_adapter()  # the noise of training is not merged
    model.eval()
    torch.testing.assert_close(output_of(plain), moved)
    with model.disable_adapter():
        assert torch.equal(output_of(plain), base)
    assert all(torch.equal(p, kept[name]) for name, p in plain.named_parameters())
    torch.testing.assert_close(output_of(model.merge_and_unload()), moved)


def test_a_mask_is_zero_below_the_threshold_and_its_gradient_passes_through():
    model = adapted(BinaryMaskConfig(threshold=0.0, start=1.0, target_modules=["down_proj"]))
    layer = layers_of(model, BinaryMaskLayer)[0]
    scores, weight = layer.mask_scores["default"], layer.base_layer.weight
    scores.data = draw(scores.shape)
    hidden = draw((3, 48), 1)
    masked = (weight * (scores > 0)).detach().requires_grad_()
    expected = hidden @ masked.T
    found = layer(hidden)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(scores.grad, masked.grad * weight)


def test_a_gate_is_a_stretched_cut_sigmoid_and_open_as_often_as_is_said():
    model = adapted(DiffPruningConfig(target_modules=["down_proj"])).eval()
    layer = layers_of(model, DiffPruningLayer)[0]
    gates = layer.diff_gates["default"]
    gates.data = torch.linspace(-4, 4, gates.numel()).view(gates.shape)
    torch.testing.assert_close(layer.gate("default"), (3 * torch.sigmoid(gates) - 1.5).clamp(0, 1))
    layer.train()
    torch.manual_seed(0)
    with torch.no_grad():
        counted = torch.stack([(layer.gate("default") > 0).sum() for _ in range(50)]).float().mean()
    assert abs(counted - layer.open_gates("default")) / counted < 0.01


def test_the_penalty_is_the_expected_number_of_open_gates():
    model = adapted(DiffPruningConfig(sparsity_weight=0.5, start=0.0))
    gates = sum(p.numel() for name, p in model.named_parameters() if "diff_gates" in name)
    torch.testing.assert_close(model.base_model.penalty(), torch.tensor(0.5 * gates * 0.5))  # open with even chance


def test_settling_keeps_the_largest_changes_and_no_others():
    model = adapted(DiffPruningConfig(keep=0.01, settle_at=0.5))
    layers = layers_of(model, DiffPruningLayer)
    for place, layer in enumerate(layers):
        layer.diff_values["default"].data = draw(layer.diff_values["default"].shape, place)
    model.base_model.schedule(8)
    before = torch.cat([layer.sizes("default") for layer in layers])
    model.base_model.update_and_allocate(3)
    assert torch.equal(torch.cat([layer.sizes("default") for layer in layers]), before)
    model.base_model.update_and_allocate(4)
    after = torch.cat([layer.sizes("default") for layer in layers])
    count = int(0.01 * len(before))
    assert (after > 0).sum() == count
    assert torch.equal(after[after > 0].sort().values, before.sort().values[-count:])

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = torch.cat([layer.sizes("default") for layer in layers])
    assert torch.equal(trained > 0, after > 0)  # the others stay closed under decay and moments
    assert (trained != after).sum() == count


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (BinaryMaskConfig, {"start": 0.0}, "above the threshold"),
        (DiffPruningConfig, {"keep": 0}, "keep is a share"),
        (DiffPruningConfig, {"settle_at": 1.5}, "settle_at is a share"),
        (DiffPruningConfig, {"sparsity_weight": -1}, "not negative"),
    ],
)
def test_options_that_mean_nothing_are_refused(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        adapted(BinaryMaskConfig(target_modules=["input_layernorm"]))
