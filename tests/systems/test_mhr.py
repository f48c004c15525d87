"""The linear world of system 14: built as said, and learned by routing per head alone."""

from __future__ import annotations

import pytest
import torch

from multitune.systems.mhr import ARMS, CLAIMS, run_small
from multitune.systems.routed_strings import END, FIRST_MARKER, FIRST_SYMBOL, SYMBOLS, compare, rows_of
from multitune.systems.routing_world import NOISE, POWER, Rows, error, fit, for_one_task, make_world, routed_layer

SMALL = {"tasks": 12, "rows": 24, "new_tasks": 2, "few": 16, "validation": 50}


@pytest.fixture(scope="module")
def world():
    return make_world(0, **SMALL)


def test_the_world_is_what_its_seed_draws_at_the_said_scale(world):
    again = make_world(0, **SMALL)
    assert torch.equal(world.train.outputs, again.train.outputs)
    assert not torch.equal(world.train.outputs, make_world(1, **SMALL).train.outputs)
    rows = make_world(0, **SMALL | {"tasks": 40, "validation": 400}).validation
    untouched = (rows.outputs - rows.inputs @ make_world(0, **SMALL | {"tasks": 40}).weight.T).square().mean()
    assert float(untouched) == pytest.approx(POWER + NOISE**2, rel=0.1)


def test_a_new_task_starts_from_the_modules_or_their_average(world):
    layer = routed_layer(world.weight, 12, skills=4, heads=8, rank=2, seed=0)
    fit(layer, world.train, steps=5, rate=1e-2, routing_rate=1e-1)
    few = Rows(world.few.inputs[:1], world.few.outputs[:1])
    average = error(layer, few, known=False)
    assert error(for_one_task(layer, 0), few) == pytest.approx(average, rel=1e-2)
    assert error(for_one_task(layer, 0, average=True), few) == pytest.approx(average, rel=1e-5)


def test_routing_alone_leaves_the_modules(world):
    layer = routed_layer(world.weight, 12, skills=4, heads=8, rank=2, seed=0)
    fit(layer, world.train, steps=3, rate=1e-2, routing_rate=1e-1)
    modules, logits = layer.mhr_A["default"].clone(), layer.mhr_Z["default"].clone()
    fit(layer, world.train, steps=3, rate=1e-2, routing_rate=1e-1, modules=False)
    assert torch.equal(layer.mhr_A["default"], modules)
    assert not torch.equal(layer.mhr_Z["default"], logits)


def test_the_arms_tell_what_the_claims_ask(tmp_path):
    sizes = {**SMALL, "steps": 60, "few_steps": 10}
    strings = {"base_steps": 20, "steps": 20, "rates": (1e-2,)}
    small = {"linear": sizes, "strings": strings}
    arms = {arm.name: run_small({**arm.settings, **small[arm.settings["world"]]}, 0, tmp_path) for arm in ARMS}
    linear = {arm.name for arm in ARMS if arm.settings["world"] == "linear"}
    assert all(set(arms[name]) == {"untouched", "joint", "full", "routing", "average"} for name in linear)
    assert all(set(arms[name]) == {"start_loss", "mixture_loss", "alignment"} for name in arms.keys() - linear)
    assert len({round(arms[name]["untouched"], 6) for name in linear}) == 1
    assert len({round(arms[name]["start_loss"], 6) for name in arms.keys() - linear}) == 1
    assert arms["MHR"]["joint"] < arms["Poly"]["joint"] < arms["LoRA"]["joint"]
    assert all(isinstance(claim.effect(arms), float) for claim in CLAIMS)


def test_the_string_tasks_answer_by_order_and_replacement() -> None:
    inputs, answers = rows_of(0, 3, torch.Generator().manual_seed(0))
    assert inputs[:, 0].tolist() == [FIRST_MARKER] * 3 and answers[:, -1].tolist() == [END] * 3
    assert torch.equal(inputs[:, 1:], answers[:, :-1])
    inputs, answers = rows_of(6, 3, torch.Generator().manual_seed(0))  # reversed, plus 7
    assert torch.equal((inputs[:, 1:].flip(1) - FIRST_SYMBOL + 7) % SYMBOLS, answers[:, :-1] - FIRST_SYMBOL)


def test_the_best_rate_is_chosen_by_validation_rows() -> None:
    shape = {"skills": 1, "heads": 1, "rank": 2, "routing_speed": 10.0}
    settings = {"base_steps": 2, "base_rate": 1e-3, "rows": 1, "steps": 4} | shape
    alone = {rate: compare(settings | {"rates": (rate,)}, 0)["mixture_loss"] for rate in (1e-5, 1e-2)}
    assert alone[1e-2] < alone[1e-5]
    assert compare(settings | {"rates": (1e-5, 1e-2)}, 0)["mixture_loss"] == pytest.approx(alone[1e-2])
