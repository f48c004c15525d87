"""System 12 in a few steps: what every arm measures, at its budget, with nothing moved that should stay."""

from __future__ import annotations

import pytest
import torch

from multitune.adaptation.methods import METHODS
from multitune.systems.adaptation_registry import ARMS, CLAIMS, new_skill, run_small

FEW = {"base_steps": 3, "steps": 2, "rows": 4, "held_out": 6, "rates": [1e-2]}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*_checkpointing.*:FutureWarning")  # peft's


def test_the_new_skill_is_a_known_one_turned_around():
    assert new_skill().answer(torch.tensor([[0, 1, 2, 39]])).tolist() == [[6, 9, 8, 7]]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_stays_within_its_budget_and_moves_nothing_else(arm, tmp_path):
    adapt = arm.settings["adapt"] | ({"samples": 4} if arm.name == "fish" else {})
    metrics = run_small(arm.settings | FEW | {"adapt": adapt}, 0, tmp_path)
    assert set(metrics) == {
        "before", "loss", "fall", "accuracy", "numbers", "share", "rate", "moved", "milliseconds",
    }  # fmt: skip
    assert metrics["moved"] == 0
    assert metrics["share"] == metrics["numbers"] / 88_896
    assert (metrics["share"] <= 0.01) == (arm.name not in ("full", "child_tuning"))


def test_methods_are_those_of_the_registry_and_claims_read_their_arms():
    assert {arm.settings["adapt"]["method"] for arm in ARMS} <= set(METHODS)
    arms = {arm.name: {"fall": 0.5, "loss": 1.0, "moved": 0.0} for arm in ARMS}
    assert [claim.effect(arms) for claim in CLAIMS] == pytest.approx([0.3, 0.0, 0.0, 0.01])
    arms["lora"] = {"fall": 0.1, "loss": 0.9, "moved": 3.0}
    assert [claim.effect(arms) for claim in CLAIMS] == pytest.approx([-0.1, -3.0, 0.0, -0.09])
