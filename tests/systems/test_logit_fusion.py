"""System 8's small reproduction: its parts, and all of it in miniature."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from multitune.systems import SYSTEMS
from multitune.systems.logit_fusion import (
    ARMS,
    CLAIMS,
    PROMPTS,
    SETTING,
    RandomFusion,
    fusion_of,
    models,
    right_expert,
    run_small,
    tasks,
)
from multitune.systems.reproducing import reproduce
from multitune.systems.skill_language import encode

TINY = {
    "large": {"layers": 1, "width": 16, "intermediate": 16, "learning_rate": 1e-2},
    "small": {"layers": 1, "width": 8, "intermediate": 8, "learning_rate": 1e-2},
    "pretraining": {"steps": 3, "rows": 8},
    "tuning": {"steps": 2, "rows": 8, "learning_rate": 1e-2},
}


def short(settings):
    return {**settings, "models": TINY, "prompts": 10}


def test_the_tasks_are_known_skills_under_markers_of_their_own():
    found = tasks(3)
    assert [task.marker for task in found.values()] == [4, 5]
    assert found["sort"].answer(torch.tensor([[3, 1, 2, 0, 5]])).tolist() == [[0, 1, 2, 3, 5]]
    assert found["facts"].prompts is not None


def test_all_arms_share_the_models_of_a_seed_and_are_its_seeds():
    one = models(0, json.dumps(TINY))
    assert models(0, json.dumps(TINY)) is one
    weights = one.experts["sort"].state_dict()
    again = models(1, json.dumps(TINY))
    assert not again.experts["sort"].lm_head.weight.equal(weights["lm_head.weight"])
    once_more = models(0, json.dumps(TINY))
    assert all(once_more.experts["sort"].state_dict()[name].equal(weight) for name, weight in weights.items())


def test_a_fusion_of_the_tiny_language_reads_its_ids():
    trained = models(0, json.dumps(TINY))
    fusion = fusion_of(trained, ("sort",), 1.0)
    task = tasks(0)["sort"]
    input_ids, _ = encode(task, task.draw(4, torch.Generator().manual_seed(0)))
    wanted = [m(input_ids=input_ids).logits for m in (trained.large, trained.experts["sort"], trained.small)]
    torch.testing.assert_close(fusion(input_ids=input_ids).logits, wanted[0] + wanted[1] - wanted[2])
    share = right_expert(fusion_of(trained, ("sort", "facts"), "dynamic"), task, task.draw(4, torch.Generator()), 0)
    assert 0 <= share <= 1


def test_the_control_draws_every_coefficient_anew_and_is_its_seed():
    trained = models(0, json.dumps(TINY))
    input_ids = torch.tensor([[6, 10, 11, 12], [6, 20, 21, 22]])
    one, same, other = (
        RandomFusion(trained, trained.experts["sort"], seed)(input_ids=input_ids).logits for seed in (0, 0, 1)
    )
    assert one.equal(same)
    assert not one.equal(other)
    large, small, expert = (
        m(input_ids=input_ids).logits for m in (trained.large, trained.small, trained.experts["sort"])
    )
    alpha = ((one - large) / (expert - small)).median(-1).values
    assert ((alpha > 0) & (alpha < 2)).all()
    assert len(alpha.flatten().unique()) == alpha.numel()


def test_the_ratio_and_the_gap_are_told_apart():
    found = run_small(short(ARMS[3].settings), 0, None)
    assert {name.rpartition("/")[2] for name in found} == {"sort", "facts", "ratio_to_ft", "gap_closed"}


def test_the_whole_reproduction_in_miniature(tmp_path, monkeypatch):
    system = SYSTEMS[8]
    scale = system.account.scales["small"]
    arms = tuple(replace(arm, settings=short(arm.settings)) for arm in scale.arms)
    account = replace(system.account, scales={"small": replace(scale, arms=arms)})
    result = reproduce(replace(system, account=account), "small", tmp_path, seeds=1)
    assert [claim["key"] for claim in result["claims"]] == [claim.key for claim in CLAIMS]
    assert all(claim["verdict"] in ("reproduced", "not reproduced", "inconclusive") for claim in result["claims"])


def test_the_arms_say_what_they_were_trained_with():
    assert all(arm.settings["models"] == SETTING and arm.settings["prompts"] == PROMPTS for arm in ARMS)


def test_the_claims_on_made_up_numbers():
    base = {"exact match/sort": 0.2, "exact match/facts": 0.1}
    arms = {arm.name: dict(base) for arm in ARMS}
    arms["dynamic"] = {"exact match/sort": 0.5, "exact match/facts": 0.2}
    effects = {claim.key: claim.effect(arms) for claim in CLAIMS}
    assert effects["1a"] == pytest.approx(0.2)
    assert effects["1b"] == effects["3"] == pytest.approx(0.1)
    assert effects["5"] == 0.0
