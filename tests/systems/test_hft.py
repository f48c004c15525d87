"""System 21's small reproduction: when tuning stops, what stays, and all of it in miniature."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from multitune.adaptation import HalfConfig, half_round
from multitune.systems import SYSTEMS, hft
from multitune.systems.reproducing import reproduce
from multitune.systems.skill_language import copy as copying
from multitune.systems.skill_language import decoder, pretrain

SHORT = {"most": 10, "rows": 8, "held_out": 20, "draws": 2}


def small(seed: int):
    return decoder(seed, layers=2, width=16, intermediate=32, heads=2)


def test_tuning_stops_at_the_first_look_that_reaches_the_accuracy():
    model, settings = small(0), {**hft.TUNING, **SHORT}
    assert hft.tune(model, copying(1), {**settings, "accuracy": 0.0}, seed=0)[0] == 5
    assert hft.tune(model, copying(1), settings, seed=0) == (10, 0.0)


def test_half_of_a_tuned_model_is_set_back():
    base = small(0)
    model = copy.deepcopy(base)
    pretrain(model, [copying(1)], steps=2, learning_rate=1e-2, rows=8, seed=0)
    tuned = copy.deepcopy(model)
    hft._reset(model, base, copying(1), SHORT, seed=4)
    frozen = half_round(model, HalfConfig(), seed=4).frozen
    old, new = base.state_dict(), tuned.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, old[name] if name in frozen else new[name])


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Every arm on untrained decoders, ten steps each."""
    system = SYSTEMS[21]
    scale = system.account.scales["small"]
    arms = tuple(replace(arm, settings={**arm.settings, **SHORT}) for arm in scale.arms)
    account = replace(system.account, scales={"small": replace(scale, arms=arms)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hft, "pretrained", small)
        return reproduce(replace(system, account=account), "small", tmp_path_factory.mktemp("21"), seeds=1)


def test_the_whole_reproduction_in_miniature(result):
    arms = {arm["name"]: arm["metrics"] for arm in result["arms"]}
    assert list(arms) == [arm.name for arm in hft.ARMS]
    assert arms["full"]["trained"] == [1.0]
    assert 0.4 < arms["half"]["trained"][0] < 0.65
    assert all(arms[name]["steps"] == [10.0] for name in arms if not name.endswith("rounds"))
    for name in ("full-rounds", "half-rounds"):
        assert arms[name]["steps"] == [30.0]
        assert {"overall", "backward", "backward_by_t"} < set(arms[name])


def test_the_claim_is_half_minus_full():
    (claim,) = hft.CLAIMS
    assert claim.threshold == 0.015
    arms = {"half": {"retention": 0.5}, "full": {"retention": 0.4}}
    assert claim.effect(arms) == pytest.approx(0.1)
