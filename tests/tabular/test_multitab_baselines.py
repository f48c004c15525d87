"""The baselines: their equations written out with loops, what trains what, and their contract as an estimator."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from multitune.tabular import TabularNetworkBaseline
from multitune.tabular.multitab_columns import TableError
from multitune.tabular.network_baselines import PLE, STEM, BaselineShape, ExpertLayer, MMoE, SharedBottom
from multitune.tabular.network_layers import NetworkTarget

TARGETS = (NetworkTarget("binary"), NetworkTarget("regression"), NetworkTarget("multiclass", 3))
SHAPE = BaselineShape(
    embed_dim=4, hidden=(6, 5), tower=(3,), experts=3, shared_experts=2, private_experts=2, initialisation="torch"
)
NETWORKS = ("mlp", "shared_bottom", "mmoe", "ple", "stem", "ft_transformer")
QUICK = {
    "initialisation": "torch",
    "embed_dim": 4,
    "hidden": (16, 8),
    "tower": (8,),
    "ff_dim": 8,
    "heads": 2,
    "epochs": 2,
    "learning_rate": 1e-2,
    "random_state": 0,
    "device": "cpu",
}


def rows(count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(3, (count, 2), generator=generator).int()
    return torch.randn(count, 3, generator=generator), codes


def make(kind: type[nn.Module], shape: BaselineShape = SHAPE) -> nn.Module:
    torch.manual_seed(0)
    return kind(3, [3, 3], TARGETS, shape).eval()


def one(stack: nn.Sequential, place: int, x: torch.Tensor) -> torch.Tensor:
    """Map number ``place`` of a stack of perceptrons alone, written out."""
    for layer in stack:
        if hasattr(layer, "weight"):
            x = x @ layer.weight[place] + layer.bias[place]
        elif hasattr(layer, "norm"):
            width = x.shape[-1]
            own = slice(place * width, (place + 1) * width)
            norm = layer.norm
            x = (x - norm.running_mean[own]) / torch.sqrt(norm.running_var[own] + norm.eps)
            x = x * norm.weight[own] + norm.bias[own]
        elif isinstance(layer, nn.ReLU):
            x = x.relu()
    return x


def warmed(network: nn.Module) -> nn.Module:
    """Give the batch norms statistics of their own."""
    network.train()
    network(*rows(20))
    return network.eval()


def test_mmoe_is_its_equation():
    network = warmed(make(MMoE))
    flat = network.tokeniser(*rows()).flatten(1)
    experts = [one(network.experts, m, flat) for m in range(3)]
    logits = network.gates(flat).view(-1, 3, 3)
    outputs = []
    for t in range(3):
        gate = logits[:, t].softmax(-1)
        outputs.append(sum(gate[:, m : m + 1] * experts[m] for m in range(3)))
    torch.testing.assert_close(network(*rows()), network.towers(torch.stack(outputs, dim=1)))


def test_a_shared_bottom_gives_all_towers_the_same():
    network = warmed(make(SharedBottom))
    bottom = one(network.bottom, 0, network.tokeniser(*rows()).flatten(1))
    torch.testing.assert_close(network(*rows()), network.towers(torch.stack([bottom] * 3, dim=1)))


@pytest.mark.parametrize("crossing", [False, True])
def test_an_expert_layer_is_its_equations(crossing):
    torch.manual_seed(0)
    layer = ExpertLayer(3, 8, SHAPE, crossing=crossing)
    layer.train()
    state, shared = torch.randn(9, 3, 8), torch.randn(9, 8)
    layer(state, shared)
    layer.eval()
    private = [one(layer.private, 2 * t + i, state[:, t]) for t in range(3) for i in range(2)]
    common = [one(layer.shared, i, shared) for i in range(2)]
    states = []
    for t in range(3):
        gate = (state[:, t] @ layer.target_gates.weight[t] + layer.target_gates.bias[t]).softmax(-1)
        mixed = [*private, *common] if crossing else [*private[2 * t : 2 * t + 2], *common]
        states.append(sum(gate[:, m : m + 1] * expert for m, expert in enumerate(mixed)))
    gate = layer.shared_gate(shared).softmax(-1)
    expected = sum(gate[:, m : m + 1] * expert for m, expert in enumerate([*private, *common]))
    new_state, new_shared = layer(state, shared)
    torch.testing.assert_close(new_state, torch.stack(states, dim=1))
    torch.testing.assert_close(new_shared, expected)


@pytest.mark.parametrize("crossing", [False, True])
def test_a_targets_state_trains_its_own_and_the_shared_experts_only(crossing):
    layer = ExpertLayer(3, 8, SHAPE, crossing=crossing).train()
    state = torch.randn(9, 3, 8)
    new_state, _ = layer(state, torch.randn(9, 8))
    new_state[:, 1].square().sum().backward()
    private, shared = layer.private[0].weight.grad, layer.shared[0].weight.grad
    assert [bool(private[m].any()) for m in range(6)] == [False, False, True, True, False, False]
    assert all(bool(shared[m].any()) for m in range(2))


def test_the_shared_state_trains_all_experts():
    layer = ExpertLayer(3, 8, SHAPE, crossing=True).train()
    _, new_shared = layer(torch.randn(9, 3, 8), torch.randn(9, 8))
    new_shared.square().sum().backward()
    assert all(bool(layer.private[0].weight.grad[m].any()) for m in range(6))


def test_targets_of_stem_have_embeddings_of_their_own():
    network = warmed(make(STEM))
    network(*rows())[:, 1].sum().backward()  # the regression target; the shared state carries all embeddings on
    table_gradient = network.tokeniser.weight_Ne.grad.view(3, 4, 4)
    assert bool(table_gradient[:, 1].any()) and bool(table_gradient[:, 3].any())
    assert network.tokeniser.weight_Ne.shape == (3, 4 * SHAPE.embed_dim)


@pytest.mark.parametrize("kind", [PLE, STEM])
def test_layers_of_experts_can_be_stacked(kind):
    shape = BaselineShape(**{**vars(SHAPE), "layers": 2})
    network = make(kind, shape).train()
    network(*rows()).square().sum().backward()
    assert len(network.layers) == 2
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_contract_of_every_network(mixed_table, tmp_path, network):
    X, Y = mixed_table
    estimator = TabularNetworkBaseline(network, **QUICK).fit(X, Y)
    assert len(estimator.networks_) == (3 if network in ("mlp", "ft_transformer") else 1)
    predicted = estimator.predict(X)
    assert list(predicted.columns) == ["value", "answer", "grade"]
    assert estimator.predict_proba(X)["grade"].shape == (300, 4)
    pd.testing.assert_frame_equal(TabularNetworkBaseline(network, **QUICK).fit(X, Y).predict(X), predicted)
    estimator.save(tmp_path)
    pd.testing.assert_frame_equal(TabularNetworkBaseline.load(tmp_path).predict(X), predicted)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_learns(regression_table, network):
    X, y = regression_table
    estimator = TabularNetworkBaseline(network, **{**QUICK, "epochs": 30, "hidden": (32,)}).fit(X, y)
    assert estimator.evaluate(X, y)["explained_variance"].min() > 0.8


def test_networks_per_target_are_independent(regression_table):
    X, y = regression_table
    both = TabularNetworkBaseline("mlp", **QUICK).fit(X, y).predict(X)
    first = TabularNetworkBaseline("mlp", **QUICK).fit(X, y[:, :1]).predict(X)
    np.testing.assert_array_equal(both["target_0"], first["target_0"])


def test_an_unknown_network_and_a_single_label(regression_table):
    X, y = regression_table
    with pytest.raises(TableError, match="network is 'resnet'"):
        TabularNetworkBaseline("resnet").fit(X, y)
    lonely = y.copy()
    lonely[1:, 0] = np.nan
    with pytest.raises(TableError, match="Only 1 row is left to learn from"):
        TabularNetworkBaseline("mlp", **QUICK).fit(X, lonely)
