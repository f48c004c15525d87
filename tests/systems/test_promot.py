"""The target of system 02 before a decoder: what is read, what trains, and what the arms measure."""

from __future__ import annotations

import math

import pytest
import torch

from multitune.systems import format_world
from multitune.systems.format_world import (
    NO,
    TARGET,
    YES,
    behind,
    encode_target,
    format_cosine,
    learned_prompt,
    measured,
    prompted,
    prompted_format,
    training_steps,
)
from multitune.systems.promot import ARMS, CLAIMS, run_small
from multitune.systems.string_tasks import END, FIRST_SYMBOL, SEPARATOR, known_to

STAGE = {"vectors": 4, "rate": 3e-2, "steps": 3, "rows": 8, "seed": 0}


@pytest.fixture(scope="module")
def base():
    return known_to(0, 2)


def test_the_target_says_whether_the_first_symbol_is_low():
    symbols = torch.tensor([[9, 15, 1, 2, 3], [10, 0, 0, 0, 0]])
    input_ids, labels = encode_target(symbols)
    assert input_ids[:, :6].tolist() == [[FIRST_SYMBOL + n for n in row] + [SEPARATOR] for row in symbols.tolist()]
    assert input_ids[:, 6:].tolist() == [[YES, END], [NO, END]]
    assert labels.tolist() == [[-100] * 6 + [YES, END], [-100] * 6 + [NO, END]]
    swapped, _ = encode_target(symbols, [1, 0])
    assert swapped[:, 6].tolist() == [NO, YES]
    assert swapped[:, :6].equal(input_ids[:, :6])


def test_stage_one_trains_the_prompt_and_stage_two_the_model(base):
    weights = {name: one.clone() for name, one in base.state_dict().items()}
    prompt = learned_prompt(_fresh(base), **STAGE)
    assert prompt.shape == (4, 64)
    start = prompted(base, 4, "vocabulary", 0, trains=False).task_prompts.vectors[0]
    assert not prompt.equal(start)
    model = behind(base, prompt)
    list(training_steps(model, rate=5e-4, steps=3, rows=8, seed=0))
    assert model.task_prompts.vectors[0].equal(prompt)
    after = dict(model.state_dict())
    assert all(not after[name].equal(one) for name, one in weights.items() if "layers" in name)
    assert all(one.equal(weights[name]) for name, one in base.state_dict().items()), "every arm tunes a copy"


def test_old_tasks_are_asked_without_the_prompt(base):
    plain = measured(_fresh(base), 0)
    model = prompted(base, 4, "uniform", 0, trains=False)
    with torch.no_grad():
        model.task_prompts.vectors[0].mul_(50)
    found = measured(model, 0)
    assert (found["old"], found["format"]) == (plain["old"], plain["format"])
    assert model.task_prompts.acting == TARGET, "the target is asked behind it again"
    assert prompted_format(model, 0)[1] == found["own"]


def test_a_model_that_always_says_yes_has_the_format_wholly(base):
    model = _fresh(base)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert measured(model, 0)["format"] == 0.0, "ties go to the first token, padding"
    handle = model.lm_head.register_forward_hook(lambda *args: torch.nn.functional.one_hot(
        torch.full(args[2].shape[:-1], YES), args[2].shape[-1]
    ).float())  # fmt: skip
    found = measured(model, 0)
    handle.remove()
    assert found["format"] == 1.0
    assert found["own"] == pytest.approx(0.5, abs=0.05)


def test_the_cosine_is_one_before_content_is_learned(base):
    assert format_cosine(_fresh(base), 0) > 0.9


def test_the_arms_tell_what_the_claims_ask(tmp_path, monkeypatch):
    monkeypatch.setattr(format_world, "TEST_ROWS", 40)
    monkeypatch.setattr(format_world, "PROBE_ROWS", 16)
    sizes = {"base_steps": 2, "prompt_steps": 2, "checkpoints": [1, 2], "rows": 1}
    arms = {arm.name: run_small({**arm.settings, **sizes}, 0, tmp_path) for arm in ARMS}
    keys = set(arms["standard FT"])
    assert set(arms["ProMoT"]) == keys | {"prompt/format", "prompt/own"}
    assert len({metrics["old/step 0"] for metrics in arms.values()}) == 1
    asked = {name: metrics | {"old/step 160": metrics["old/step 2"]} for name, metrics in arms.items()}
    assert all(isinstance(claim.effect(asked), float) for claim in CLAIMS)
    reached = {name for name in keys if name.startswith("first/")}
    assert reached == {"first/step", "first/own", "first/old", "first/format"}


def test_the_claims_follow_the_first_checkpoint_and_the_last():
    def arm(first_old, first_format, last_old):
        return {"first/old": first_old, "first/format": first_format, "old/step 160": last_old}

    arms = {
        "standard FT": arm(0.5, 0.6, 0.3),
        "joint": arm(0.9, 0.0, 0.8),
        "fixed random": arm(0.9, 0.0, 0.985),
        "ProMoT": arm(0.99, 0.02, 0.97),
    }
    effects = [claim.effect(arms) for claim in CLAIMS]
    assert effects == pytest.approx([0.49, 0.17, -0.015, 0.08])
    assert all(effect >= claim.threshold for effect, claim in zip(effects, CLAIMS, strict=True))
    arms["ProMoT"]["first/old"] = math.nan
    assert math.isnan(CLAIMS[0].effect(arms)), "an arm that never does its own task decides nothing"


def _fresh(base):
    import copy

    return copy.deepcopy(base)
