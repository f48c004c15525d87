"""The string tasks of system 22: what a row is, that the base stays frozen, and that the arms tell what is claimed."""

from __future__ import annotations

import pytest
import torch

from multitune.systems.ept import ARMS, CLAIMS, run_small
from multitune.systems.prompt_induction import NEUTRAL, neutrally, with_prompt
from multitune.systems.string_tasks import END, FIRST_SYMBOL, SEPARATOR, TASKS, accuracy, draw, encode, known_to

SYMBOLS = torch.tensor([[3, 1, 19, 0, 3]])


@pytest.mark.parametrize(
    ("task", "answer"),
    list(zip(TASKS, ([3, 1, 19, 0, 3], [3, 0, 19, 1, 3], [4, 2, 0, 1, 4], [0, 1, 3, 3, 19]), strict=True)),
    ids=lambda one: getattr(one, "name", "answer"),
)
def test_a_row_is_a_marker_what_is_read_and_the_answer(task, answer):
    input_ids, labels = encode(task, SYMBOLS)
    read = [FIRST_SYMBOL + symbol for symbol in SYMBOLS[0].tolist()]
    written = [*[FIRST_SYMBOL + symbol for symbol in answer], END]
    assert input_ids.tolist() == [[task.marker, *read, SEPARATOR, *written]]
    assert labels.tolist() == [[-100] * 7 + written]
    assert encode(neutrally(task), SYMBOLS)[0][0, 0] == NEUTRAL
    assert NEUTRAL not in [one.marker for one in TASKS]


def test_the_base_is_what_its_seed_makes_it_and_learns():
    model = known_to(0, steps=30)
    rows = draw(200, torch.Generator().manual_seed(1))
    assert torch.equal(model.lm_head.weight, known_to(0, steps=30).lm_head.weight)
    assert not torch.equal(model.lm_head.weight, known_to(1, steps=1).lm_head.weight)
    before, after = (accuracy(one, TASKS[2], rows)[0] for one in (known_to(0, steps=1), model))
    assert after > before


@pytest.mark.parametrize(
    ("arm", "numbers"),
    list(zip(ARMS, (1280, 1232, 1328), strict=True)),
    ids=lambda one: getattr(one, "name", "numbers"),
)
def test_the_arms_have_the_numbers_of_the_card(arm, numbers):
    model = with_prompt(known_to(0, steps=1), arm.settings["prompt"], 0)
    prompts = {name: p.numel() for name, p in model.named_parameters() if ".soft_prompt." in name}
    assert sum(prompts.values()) == numbers
    assert str(numbers) in arm.told


def test_the_arms_tell_what_the_claims_ask(tmp_path, monkeypatch):
    monkeypatch.setattr("multitune.systems.prompt_induction.TIMED", 3)
    monkeypatch.setattr("multitune.systems.prompt_induction.ROUNDS", 1)
    sizes = {"base_steps": 20, "steps": 10}
    arms = {arm.name: run_small({**arm.settings, **sizes}, 0, tmp_path) for arm in ARMS}
    for metrics in arms.values():
        assert metrics["steps"] == 10, "nothing is learned so soon"
        assert 0 < metrics["accuracy"] < 0.95
        assert metrics["step_time"] > 0
    assert len({metrics["known"] for metrics in arms.values()}) == 1
    assert all(isinstance(claim.effect(arms), float) for claim in CLAIMS)
