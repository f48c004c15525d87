"""System 24's small reproduction: its schedules and its reading of curves; LiNeS' laws on them."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from multitune.models.architecture import architecture_index
from multitune.systems.lines import control_at, edit, factor
from multitune.systems.skill_language import decoder


@pytest.fixture(scope="module")
def model():
    return decoder(0, layers=5, width=16, intermediate=32, heads=2)


@pytest.fixture
def places(model):
    return architecture_index({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize(
    ("schedule", "inside", "embedding", "norm"),
    [
        ("uniform", [0.2] * 5, 0.2, 0.2),
        ("lines", [0.2, 0.4, 0.6, 0.8, 1.0], 0.2, 0.2),
        ("reversed", [1.0, 0.8, 0.6, 0.4, 0.2], 0.2, 0.2),
        ("deepest", [0.2, 0.4, 0.6, 0.8, 1.0], 0.2, 1.0),
    ],
)
def test_factors_by_depth(places, schedule, inside, embedding, norm):
    found = [factor(places[f"model.layers.{layer}.mlp.up_proj.weight"], schedule, 0.2) for layer in range(5)]
    assert found == pytest.approx(inside)
    assert factor(places["model.embed_tokens.weight"], schedule, 0.2) == pytest.approx(embedding)
    assert factor(places["model.norm.weight"], schedule, 0.2) == pytest.approx(norm)


@pytest.mark.parametrize("schedule", ["uniform", "lines", "reversed", "deepest"])
def test_the_whole_change_is_the_tuned_model_and_the_base_is_never_touched(model, schedule):
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = {name: tensor + 1.0 for name, tensor in base.items()}
    edited = copy.deepcopy(model)
    edit(edited, base, tuned, schedule, 1.0)
    for name, tensor in edited.state_dict().items():
        torch.testing.assert_close(tensor, tuned[name])
    edit(edited, base, tuned, schedule, 0.0)
    last = edited.state_dict()["model.layers.4.mlp.up_proj.weight"] - base["model.layers.4.mlp.up_proj.weight"]
    assert last.mean().item() == pytest.approx(1.0 if schedule in ("lines", "deepest") else 0.0, abs=1e-6)
    if schedule == "uniform":
        assert all(torch.equal(tensor, base[name]) for name, tensor in edited.state_dict().items())


def test_a_curve_is_read_between_its_points_at_its_best_crossing():
    curve = [(0.0, 1.0), (0.4, 0.8), (0.2, 0.7), (1.0, 0.3)]
    assert control_at(curve, 0.3) == pytest.approx(0.85)  # 0.85, 0.75 and 0.65 where it crosses
    assert control_at(curve, 0.6) == pytest.approx(0.5)
    assert math.isnan(control_at(curve[:2], 0.6))
    assert control_at([(0.5, 0.9), (0.5, 0.7)], 0.5) == pytest.approx(0.8)
