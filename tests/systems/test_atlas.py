"""System 25's small reproduction: its few-shot split, and all of it in miniature."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from multitune.systems import SYSTEMS, atlas_runs, task_vector_testbed
from multitune.systems.atlas_runs import _shots, bed_of
from multitune.systems.reproducing import reproduce
from multitune.systems.task_vector_testbed import Rows


def test_shots_are_the_first_of_every_class_and_the_rest_is_the_rest():
    rows = Rows(torch.arange(8.0)[:, None], torch.tensor([0, 0, 1, 0, 1, 2, 1, 0]))
    shots, rest = _shots(rows, 2)
    assert shots.inputs.flatten().tolist() == [0, 1, 2, 4, 5]
    assert rest.inputs.flatten().tolist() == [3, 6, 7]
    assert rest.labels.tolist() == [0, 1, 0]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Every arm on a test bed of two tasks, few steps and few rows."""
    system = SYSTEMS[25]
    scale = system.account.scales["small"]
    short = {"targets": 2, "tuning_steps": 20, "steps": 9, "evaluations": 8, "shots": 4}
    arms = tuple(
        replace(arm, settings=arm.settings | {key: value for key, value in short.items() if key in arm.settings})
        for arm in scale.arms
    )
    account = replace(system.account, scales={"small": replace(scale, arms=arms)})
    names = ("few-shot", "test-time", "negation")
    quick = {name: atlas_runs.SETTINGS[name].model_copy(update={"epochs": 1}) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_vector_testbed, "PRETRAINING_STEPS", 300)
        patch.setattr(atlas_runs, "SETTINGS", atlas_runs.SETTINGS | quick)
        yield reproduce(replace(system, account=account), "small", tmp_path_factory.mktemp("25"), seeds=1)
    bed_of.cache_clear()


def test_the_whole_reproduction_in_miniature(result):
    assert [claim["key"] for claim in result["claims"]] == ["1", "2", "3a", "3b"]
    arms = {arm["name"]: arm["metrics"] for arm in result["arms"]}
    for name, metrics in arms.items():
        if name.startswith("negation"):
            assert set(metrics) == {"negation/target", "negation/control"}
            continue
        group = {"few": "few-shot", "test": "test-time"}.get(name.partition("-")[0], "accuracy")
        by_task = [metrics[f"{group}/task{number}"][0] for number in (1, 2)]
        assert metrics[f"{group}/mean"][0] == pytest.approx(sum(by_task) / 2, abs=1e-6)
        assert all(0.1 < value < 1 for value in by_task)
    assert arms["own"]["accuracy/mean"] > arms["zero-shot"]["accuracy/mean"]


def test_the_searched_scalar_is_the_best_of_the_test_rows(result):
    """Its grid holds 0: it cannot fall below the pretrained encoder."""
    arms = {arm["name"]: arm["metrics"] for arm in result["arms"]}
    assert arms["scalar"]["accuracy/mean"] >= arms["zero-shot"]["accuracy/mean"]
    assert arms["scalar"]["disentanglement/error"][0] >= 0
