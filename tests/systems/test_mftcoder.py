"""System 20's small reproduction: its data, and all of it in miniature."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from multitune.systems import SYSTEMS
from multitune.systems.mftcoder import CODE_TASKS, FOUR, SKILLS, examples, run_full, small_decoder, watched
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


@pytest.fixture
def few_objects():
    """Let the garbage collection after every training skip what was there before: it would take most of the time."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_the_whole_reproduction_in_miniature(tmp_path, few_objects):
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


def test_the_full_scale_takes_the_same_way_on_a_model_that_is_here(tmp_path):
    """The arm's settings with the embedded base, rows of two tasks' own fields, and two steps."""
    (arm,) = [arm for arm in SYSTEMS[20].account.scales["full"].arms if arm.name == "case3"]
    rows = {
        "instructions": {"instruction": "Write a program that prints one.", "output": "print(1)"},
        "exercises": {"chat_rounds": [{"role": "human", "content": "Add."}, {"role": "bot", "content": "a + b"}]},
        "translation": {"java": "int one() { return 1; }", "cs": "int One() { return 1; }"},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 6)
    tasks = {
        name: {**told, "train": f"{name}.jsonl", "validation": f"{name}.jsonl"} for name, told in CODE_TASKS.items()
    }
    short = {
        "epochs": None,
        "steps": 2,
        "batch_size": 2,
        "micro_batch_size": 2,
        "max_length": 128,
        "gradient_checkpointing": False,
    }
    metrics = run_full(
        {
            **arm.settings,
            "model": {"name": "tiny"},
            "adapt": {**arm.settings["adapt"], "r": 4},
            "tasks": tasks,
            "held_out": 2,
            "training": {**arm.settings["training"], **short},
        },
        0,
        tmp_path,
    )
    assert set(metrics) == {f"nll/{name}" for name in rows}
    assert all(0 < value < 20 for value in metrics.values())


def checkpoint(folder, step, slope, weight):
    """What CoBa keeps, of two tasks; the last is watched."""
    state = {"slope_UT": torch.tensor([[-1.0, -9.0], [-1.0, slope]]), "weight_T": torch.tensor([4 - weight, weight])}
    (folder / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    save_file(state, folder / "checkpoints" / f"checkpoint-{step}" / "balancer.safetensors")


def test_the_weight_is_watched_from_the_turn_of_the_slope_on(tmp_path):
    for step, slope, weight in ((50, -1.0, 2.0), (100, 0.5, 1.0), (150, -0.1, 2.0), (1000, 0.2, 0.6)):
        checkpoint(tmp_path, step, slope, weight)
    assert watched(tmp_path) == pytest.approx({"slope_turned": 100.0, "weight_after": (0.25 + 0.5 + 0.15) / 3})


def test_a_slope_that_never_turns_leaves_the_weight_open(tmp_path):
    checkpoint(tmp_path, 50, -1.0, 2.0)
    assert all(math.isnan(value) for value in watched(tmp_path).values())
