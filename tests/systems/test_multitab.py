"""The reproduction of MultiTab in miniature, and its claims on made-up numbers."""

from __future__ import annotations

import math

import pytest

from multitune.systems import multitab
from multitune.systems.multitab import ARMS, CLAIMS, LARGE_ARMS, SYSTEM, gain, run

CLAIM = {claim.key: claim for claim in CLAIMS}


def in_miniature(name: str) -> dict:
    (settings,) = [arm.settings for arm in ARMS if arm.name == name]
    return {**settings, "rows": 120, "epochs": 2, "learning_rates": settings["learning_rates"][:2]}


@pytest.mark.parametrize("name", ["tokens-0", "one-0", "bottom-0", "multitab", "multitab-open", "mlp", "ft"])
def test_arms_in_miniature(tmp_path, monkeypatch, name):
    monkeypatch.setattr(multitab, "TEST_ROWS", 50)
    settings = in_miniature(name)
    metrics = run(settings, 0, tmp_path)
    targets = settings["bench"]["targets"]
    each = [metrics[f"explained/{t}"] for t in range(targets)]
    assert metrics["explained"] == pytest.approx(sum(each) / targets)
    assert metrics["learning_rate"] in settings["learning_rates"]
    assert metrics == run(settings, 0, tmp_path)
    if name == "tokens-0":
        assert metrics["leak"] == 0 and metrics["parameters"] == 5108
    elif name.startswith("multitab"):
        assert metrics["leak"] > 0
    else:
        assert "leak" not in metrics


def test_the_claims_on_made_up_numbers():
    arms = {arm.name: {"explained": 0.5, "leak": 0.0, **{f"explained/{t}": 0.5 for t in range(6)}} for arm in ARMS}
    arms["tokens-0"]["explained"] = 0.9
    arms["one-95"]["explained"] = 0.53
    arms["ple"]["explained"] = 0.6
    arms["multitab"]["explained/0"] = 0.8
    assert CLAIM["1"].effect(arms) == pytest.approx(0.4)
    assert CLAIM["2"].effect(arms) == pytest.approx(-0.03)
    assert CLAIM["3"].effect(arms) == 0
    assert CLAIM["4"].effect(arms) == pytest.approx(100 * 0.6 / 6)
    assert CLAIM["5"].effect(arms) == pytest.approx(-0.1)
    arms["tokens-95"]["leak"] = 1e-9
    assert CLAIM["3"].effect(arms) < CLAIM["3"].threshold


def test_no_gain_is_told_over_a_target_that_was_not_learned():
    arms = {name: {f"explained/{t}": 0.5 for t in range(6)} for name in ("a", "b")}
    arms["b"]["explained/3"] = -0.01
    assert math.isnan(gain(arms, "a", "b"))


def test_all_arms_of_a_comparison_see_the_same_table():
    compared = [arm for arm in ARMS if len(arm.settings["learning_rates"]) == 2]
    assert len(compared) == 10
    assert len({str(arm.settings["bench"]) for arm in compared}) == 1


@pytest.mark.parametrize("arm", LARGE_ARMS, ids=lambda arm: arm.name)
def test_the_arms_of_the_full_scale_in_miniature(tmp_path, arm):
    training = {**arm.settings["training"], "device": "cpu", "batch_size": 64}
    metrics = run({**arm.settings, "rows": 150, "test_rows": 50, "epochs": 1, "training": training}, 0, tmp_path)
    assert metrics["learning_rate"] == 1e-3 and len([name for name in metrics if "/" in name]) == 7


def test_the_full_scale_judges_what_the_small_one_compares():
    full = SYSTEM.account.scales["full"]
    arms = {arm.name: {"explained": 0.5, "explained/0": 0.5} for arm in full.arms}
    arms["multitab"] = {"explained": 0.6, "explained/0": 0.6}
    assert [claim.effect(arms) for claim in full.claims] == pytest.approx([20, 0.1])
    assert full.needs_gpu
