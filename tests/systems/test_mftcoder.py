"""System 20's small reproduction: its data, and all of it in miniature."""

from __future__ import annotations

from dataclasses import replace

import pytest

from multitune.systems import SYSTEMS
from multitune.systems.mftcoder import FOUR, SKILLS, examples, small_decoder
from multitune.systems.reproducing import reproduce


def test_answers_worked_by_hand():
    symbols = [3, 15, 0, 7, 7, 2]
    assert {name: skill(symbols) for name, skill in SKILLS.items()} == {
        "reverse": [2, 7, 7, 0, 15, 3],
        "rotate": [15, 0, 7, 7, 2, 3],
        "max": [15],
        "sum": [34 % 16],
    }


@pytest.mark.parametrize("skill", FOUR)
def test_held_out_rows_are_no_training_rows(skill):
    held_out = {row["prompt"] for row in examples(skill, 0, 300, 0)}
    training = {row["prompt"] for row in examples(skill, 300, FOUR[skill], 0)}
    assert (len(held_out), len(training)) == (300, FOUR[skill])
    assert not held_out & training
    assert held_out != {row["prompt"] for row in examples(skill, 0, 300, 1)}


def test_the_decoder_is_its_seeds():
    one, same, other = (small_decoder(seed).model.state_dict() for seed in (0, 0, 1))
    assert all(one[name].equal(same[name]) for name in one)
    assert not one["lm_head.weight"].equal(other["lm_head.weight"])


def test_the_whole_reproduction_in_miniature(tmp_path):
    """Every arm really trains, on a few rows and steps, and every claim gets a verdict; a rerun repeats the metrics."""
    system = SYSTEMS[20]
    scale = system.account.scales["small"]

    def short(settings):
        rows = {task: min(count, 40) for task, count in settings["tasks"].items()}
        return {**settings, "steps": 2, "batch_size": 8, "tasks": rows, "held_out": 20}

    arms = tuple(replace(arm, settings=short(arm.settings)) for arm in scale.arms)
    account = replace(system.account, scales={"small": replace(scale, arms=arms)})
    small = replace(system, account=account)
    result = reproduce(small, "small", tmp_path / "1", seeds=2)
    assert len(result["claims"]) == len(scale.claims)
    for arm in result["arms"]:
        for name, values in arm["metrics"].items():
            if name.startswith("accuracy"):
                assert all(0 <= value <= 1 for value in values)
            if name.startswith("nll"):
                assert all(2 < value < 5 for value in values)  # near ln 22: almost nothing is learned in two steps
    (tmp_path / "again").mkdir()
    again = scale.run(arms[0].settings, 1, tmp_path / "again")
    assert {name: values[1] for name, values in result["arms"][0]["metrics"].items()} == pytest.approx(again, rel=1e-5)
