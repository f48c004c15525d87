"""The invariants of MultiTab-Net: masks, isolation, parameter counts, gradients, rows that see each other or do not."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from multitune.tabular.multitab_network import (
    MASKS,
    EncoderLayer,
    Mask,
    MultiTabNetwork,
    NetworkShape,
    blocked_attention,
)
from multitune.tabular.network_layers import NetworkTarget, StackedLinear, Towers, output_slices
from multitune.tabular.network_training import Place, Rows, TargetLosses, TrainingSettings, train_network

BINARY, VALUE = NetworkTarget("binary"), NetworkTarget("regression")
MIXED = (BINARY, VALUE, NetworkTarget("multiclass", 3), VALUE)


def make_network(targets=MIXED, *, numeric=3, cardinalities=(4, 2), seed=0, **shape) -> MultiTabNetwork:
    torch.manual_seed(seed)
    settings = {"embed_dim": 8, "heads": 2, "ff_dim": 16, "tower": (5,), "initialisation": "torch", **shape}
    return MultiTabNetwork(numeric, cardinalities, targets, NetworkShape(**settings)).eval()


def make_rows(rows=6, *, numeric=3, cardinalities=(4, 2), seed=1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(c, (rows,), generator=generator) for c in cardinalities]
    return torch.randn(rows, numeric, generator=generator), torch.stack(codes, dim=1).int()


def as_lines(blocked: Tensor) -> str:
    return "/".join("".join(str(int(cell)) for cell in row) for row in blocked)


def test_masks_are_the_worked_example():
    assert as_lines(blocked_attention("none", 2, 3)) == "00000/00000/00000/00000/00000"
    assert as_lines(blocked_attention("TxT", 2, 3)) == "01000/10000/00000/00000/00000"
    assert as_lines(blocked_attention("FxT", 2, 3)) == "00000/00000/11000/11000/11000"
    assert as_lines(blocked_attention("FxT_TxT", 2, 3)) == "01000/10000/11000/11000/11000"


def test_one_target_makes_the_mask_between_targets_none():
    assert torch.equal(blocked_attention("TxT", 1, 4), blocked_attention("none", 1, 4))


def moved_targets(mask: Mask, blocks: int, **shape) -> set[int]:
    """Nudge the first task token and return which targets' outputs change at all."""
    network, rows = make_network(mask=mask, blocks=blocks, **shape), make_rows()
    before = network(*rows)
    with torch.no_grad():
        network.task_bias_Te[0] += torch.linspace(-1, 1, 8)  # a constant would vanish in the layer norm
    after = network(*rows)
    columns = enumerate(output_slices(MIXED))
    return {target for target, column in columns if not torch.equal(before[:, column], after[:, column])}


@pytest.mark.parametrize(
    ("mask", "blocks", "moved"),
    [
        ("TxT", 1, {0}),
        ("FxT_TxT", 1, {0}),
        ("FxT_TxT", 2, {0}),
        ("FxT_TxT", 3, {0}),
        ("TxT", 2, {0, 1, 2, 3}),  # through the features
        ("FxT", 1, {0, 1, 2, 3}),  # task tokens see each other
        ("none", 1, {0, 1, 2, 3}),
    ],
)
def test_what_a_task_token_reaches(mask, blocks, moved):
    assert moved_targets(mask, blocks) == moved


def test_attention_between_rows_undoes_the_isolation():
    assert moved_targets("TxT", 1, inter_sample="batch") == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ({"inter_sample": "batch"}, 1_123_016),
        ({"inter_sample": "batch", "multi_token": False}, 698_872),
        ({}, 19_832),
    ],
)
def test_parameter_counts_of_the_higgs_setting(shape, parameters):
    network = MultiTabNetwork(17, [3] * 4, [BINARY] + [VALUE] * 7, NetworkShape(**shape))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_parameter_counts_of_the_parts():
    E, ff, e = 12, 7, 8
    layer = EncoderLayer(E, 3, ff, 0.0, 0.0, "paper")
    assert sum(p.numel() for p in layer.parameters()) == 4 * E**2 + 9 * E + 2 * E * ff + ff
    tokeniser = make_network().tokeniser
    assert sum(p.numel() for p in tokeniser.parameters()) == 2 * e * 3 + (4 + 2) * e
    towers = Towers(MIXED, e, (64,), 0.0, "paper")
    expected = sum(64 * e + 64 + 64 * target.outputs + target.outputs for target in MIXED)
    assert sum(p.numel() for p in towers.parameters()) == expected


def test_the_papers_initialisation():
    network = make_network(numeric=60, initialisation="paper", inter_sample="batch", ff_dim=64)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("qkv.weight"):
            assert parameter.abs().max() <= (6 / (4 * parameter.shape[1])) ** 0.5
        elif "bias" in name:
            assert not parameter.any(), name
        else:
            assert parameter.abs().max() < 0.07, name
    assert network.tokeniser.weight_Ne.std().item() == pytest.approx(0.01, rel=0.1)
    assert network.over_tokens[0].out.weight.std().item() == pytest.approx(0.01, rel=0.4)


def test_an_encoder_layer_is_torchs_attention_and_feed_forward():
    torch.manual_seed(0)
    layer = EncoderLayer(8, 2, 16, 0.0, 0.0, "torch").eval()
    peer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, F.gelu, batch_first=True, norm_first=True).eval()
    peer.load_state_dict(
        {
            "self_attn.in_proj_weight": layer.qkv.weight,
            "self_attn.in_proj_bias": layer.qkv.bias,
            "self_attn.out_proj.weight": layer.out.weight,
            "self_attn.out_proj.bias": layer.out.bias,
            "linear1.weight": layer.feed_forward[0].weight,
            "linear1.bias": layer.feed_forward[0].bias,
            "linear2.weight": layer.feed_forward[3].weight,
            "linear2.bias": layer.feed_forward[3].bias,
            "norm1.weight": layer.norm1.weight,
            "norm1.bias": layer.norm1.bias,
            "norm2.weight": layer.norm2.weight,
            "norm2.bias": layer.norm2.bias,
        }
    )
    tokens_BSE = torch.randn(4, 5, 8)
    blocked_SS = blocked_attention("FxT_TxT", 2, 3)
    expected = peer(tokens_BSE, src_mask=blocked_SS)
    torch.testing.assert_close(layer(tokens_BSE, ~blocked_SS), expected)
    torch.testing.assert_close(layer(tokens_BSE, ~blocked_SS[:2], queries=2), expected[:, :2])


def test_a_row_depends_on_no_other_row():
    network, (numeric, codes) = make_network(blocks=2), make_rows(6)
    alone = torch.cat([network(numeric[i : i + 1], codes[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(network(numeric, codes), alone)


def test_the_order_of_features_does_not_matter_with_their_parameters():
    network, (numeric, codes) = make_network(blocks=2, cardinalities=(4, 4)), make_rows(cardinalities=(4, 4))
    before, order = network(numeric, codes), torch.tensor([2, 0, 1])
    with torch.no_grad():
        network.tokeniser.weight_Ne.copy_(network.tokeniser.weight_Ne[order].clone())
        network.tokeniser.bias_Ne.copy_(network.tokeniser.bias_Ne[order].clone())
        network.tokeniser.table.weight.copy_(network.tokeniser.table.weight.roll(4, dims=0))
    torch.testing.assert_close(network(numeric[:, order], codes.flip(1)), before)


def test_rows_that_see_each_other():
    network, (numeric, codes) = make_network(inter_sample="batch", blocks=2), make_rows(6)
    outputs, order = network(numeric, codes), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(network(numeric[order], codes[order]), outputs[order])
    assert not torch.allclose(network(numeric[:3], codes[:3]), outputs[:3], atol=1e-4)


def test_a_row_alone_attends_to_itself_only():
    torch.manual_seed(0)
    layer = EncoderLayer(8, 2, 16, 0.0, 0.0, "torch").eval()
    flat_BE = torch.randn(1, 8)
    value = F.linear(layer.norm1(flat_BE), layer.qkv.weight[16:], layer.qkv.bias[16:])
    h = flat_BE + layer.out(value)
    torch.testing.assert_close(layer(flat_BE[None], None)[0], h + layer.feed_forward(layer.norm2(h)))


def test_with_a_context_a_row_depends_on_the_context_and_itself():
    network, (numeric, codes) = make_network(inter_sample="batch", blocks=2), make_rows(6)
    context = network.encode_context(*make_rows(5, seed=2))
    outputs = network(numeric, codes, context)
    alone = torch.cat([network(numeric[i : i + 1], codes[i : i + 1], context) for i in range(6)])
    torch.testing.assert_close(outputs, alone)
    other = network(numeric, codes, network.encode_context(*make_rows(5, seed=3)))
    assert not torch.allclose(outputs, other, atol=1e-4)


def test_attending_to_a_context_is_attending_in_a_batch_of_it_and_oneself():
    torch.manual_seed(0)
    layer = EncoderLayer(8, 2, 16, 0.0, 0.0, "torch").eval()
    context_KE, row_E = torch.randn(5, 8), torch.randn(8)
    together = layer(torch.cat((context_KE, row_E[None]))[None], None)[0, -1]
    torch.testing.assert_close(layer.attend_context(row_E[None], context_KE)[0], together)


def gradients_of(network: MultiTabNetwork, label_BT: Tensor, target: int) -> None:
    sums, counts = TargetLosses(MIXED)(network(*make_rows(len(label_BT))), label_BT, None)
    network.zero_grad()
    (sums / counts.clamp_min(1e-9))[target].backward()


def test_a_targets_loss_moves_its_own_token_and_no_other():
    network, label_BT = make_network(mask="TxT"), torch.tensor([[1.0, 0.3, 2.0, -0.1]] * 6)
    for target in range(4):
        gradients_of(network, label_BT, target)
        for token in range(4):
            moved = bool(network.task_weight_Te.grad[token].any())
            assert moved == (token == target)


def test_missing_labels_move_nothing_of_their_target():
    network, label_BT = make_network(mask="TxT"), torch.tensor([[1.0, 0.3, 2.0, -0.1]] * 6)
    label_BT[:, 1] = torch.nan
    sums, counts = TargetLosses(MIXED)(network(*make_rows(6)), label_BT, None)
    assert counts.tolist() == [6, 0, 6, 6]
    (sums / counts.clamp_min(1e-9)).sum().backward()
    assert not network.task_weight_Te.grad[1].any()
    first = network.towers.hidden[0]
    assert isinstance(first, StackedLinear)
    assert [bool(first.weight.grad[t].any()) for t in range(4)] == [True, False, True, True]
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())


def test_losses_are_means_over_present_labels():
    outputs_BO = torch.tensor([[0.5, 2.0, 1.0, 0.0, 0.0, 3.0], [-1.0, 1.0, 0.0, 2.0, 0.0, 1.0]])
    label_BT = torch.tensor([[1.0, 1.5, torch.nan, 1.0], [0.0, torch.nan, 1.0, 1.0]])
    weight_BT = torch.tensor([[1.0, 1.0, 1.0, 3.0], [2.0, 1.0, 1.0, 1.0]])
    sums, counts = TargetLosses(MIXED)(outputs_BO, label_BT, weight_BT)
    assert counts.tolist() == [3, 1, 1, 4]
    binary = F.binary_cross_entropy_with_logits(outputs_BO[:, 0], label_BT[:, 0], reduction="none")
    expected = [
        binary[0] + 2 * binary[1],
        torch.tensor(0.25),
        F.cross_entropy(outputs_BO[1, 2:5], torch.tensor(1)),
        torch.tensor(3 * 4.0 + 0.0),
    ]
    torch.testing.assert_close(sums, torch.stack(expected))


def test_towers_keep_the_order_of_the_targets():
    torch.manual_seed(0)
    towers, vectors_BTh = Towers(MIXED, 8, (5,), 0.0, "torch"), torch.randn(3, 4, 8)
    outputs = towers(vectors_BTh)
    for target, columns in enumerate(output_slices(MIXED)):
        nudged = vectors_BTh.clone()
        nudged[:, target] += torch.linspace(-1, 1, 8)
        changed = (towers(nudged) != outputs).any(dim=0)
        assert changed.nonzero().flatten().tolist() == list(range(columns.start, columns.stop))


@pytest.mark.parametrize(("mask", "multi_token"), list(itertools.product(MASKS, (True, False))))
def test_every_mask_trains_with_one_token_and_with_many(mask, multi_token):
    network = make_network(mask=mask, multi_token=multi_token, blocks=2)
    network(*make_rows()).sum().backward()
    assert network.task_weight_Te.shape == (4 if multi_token else 1, 8)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_rows_are_taken_with_all_their_blocks():
    rows = Rows(torch.arange(6.0).view(3, 2), torch.arange(3).view(3, 1).int(), torch.tensor([[1.0], [torch.nan], [2]]))
    assert rows.take(torch.tensor([2, 0])).labels.tolist() == [[2.0], [1.0]]
    assert rows.labelled().codes.tolist() == [[0], [2]]
    assert rows.bytes == 6 * 4 + 3 * 4 + 3 * 4


def trained(rows_at_once: int | None, **settings) -> tuple[Tensor, list[float]]:
    """Train for three epochs and return the outputs and the losses of the last."""
    numeric, codes = make_rows(40)
    label_BT = torch.cat((numeric > 0, numeric), dim=1)[:, [0, 3, 1, 4]].float()
    label_BT[::3, 1] = torch.nan
    rows, network = Rows(numeric, codes, label_BT), make_network(blocks=2)
    network.rows_at_once = rows_at_once
    plan = TrainingSettings(epochs=3, batch_size=20, learning_rate=0.01, **settings)
    history = train_network(network, MIXED, rows, plan, Place(torch.device("cpu")), seed=0)
    return network(numeric, codes), history.losses[-1]


@pytest.mark.parametrize("loss", ["mse", "rmse"])
def test_a_batch_computed_in_parts_takes_the_same_steps(loss):
    # outputs and no weights: the bias of the keys has no gradient but rounding, by which AdamW steps all the same
    torch.testing.assert_close(
        trained(7, regression_loss=loss), trained(None, regression_loss=loss), rtol=1e-4, atol=1e-5
    )


def test_rows_that_see_each_other_are_computed_together():
    assert make_network(inter_sample="batch").rows_at_once is None
    assert make_network(blocks=2, ff_dim=4096).rows_at_once < make_network(blocks=1, ff_dim=4096).rows_at_once
