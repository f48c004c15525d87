"""`multitune learning-curve` on a small model: curves from two starts, a page, JSON; what stands is not done again."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_transfer import Structure, ended
from tests.recipes.conftest import data, model_folder, own_cache, recipe, write

__all__ = ["data", "model_folder", "own_cache", "recipe", "write"]


@pytest.fixture
def words(recipe, write, tmp_path):
    joint = recipe["steps"].pop("joint")
    recipe["tasks"]["sign"]["held_out"] = True
    recipe["steps"] = {"instruct": {**joint, "adapt": "full"}, "few": {**joint, "model": "instruct", "adapt": "full"}}
    return ["learning-curve", write(recipe), "--task", "sign", "--budgets", "4,all", "--out", tmp_path / "out"]


def test_curves_from_two_starts_and_the_examples_that_are_enough(words, tmp_path, capsys):
    assert ended(*words, "--json") == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert "4 trainings with the settings of 'few', from base, instruct." in told.err
    assert [one["label"] for one in answer["curves"]] == ["base", "instruct"]
    for one in answer["curves"]:
        assert [(point["budget"], point["rows"]) for point in one["points"]] == [
            ("0", {"sign": 0}), ("4", {"sign": 4}), ("all", {"sign": 24})
        ]  # fmt: skip
        for point in one["points"]:
            assert point["value"] == pytest.approx(point["by_task"]["sign"])
            assert point["low"] - 1e-9 <= point["value"] <= point["high"] + 1e-9
    assert answer["reach"]["sign"] == answer["curves"][0]["points"][-1]["by_task"]["sign"]
    assert answer["curves"][0]["by_task"]["sign"] <= 24 and len(answer["sentences"]) == 2
    found = Structure((tmp_path / "out" / "learning_curve.html").read_text())
    assert found.loaded == [] and "script" not in found.tags
    assert found.tags.count("table") == 2 and found.tags.count("polyline") == 2

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "nodes").glob("*/artifact.json")}
    assert ended(*words, "--reach", "1.5") == 0
    shown = capsys.readouterr().out
    assert "not reached" in shown and "instruct: more examples than the largest budget to reach 1.5." in shown
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(stamps) == 5  # stage 1 once, and two starts from two budgets


def test_a_dry_run_trains_nothing_and_many_trainings_need_a_word(words, tmp_path, capsys):
    assert ended(*words, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"sign": {"4": 4, "all": 24}}
    assert ended(*words, "--dry-run") == 0 and "24" in capsys.readouterr().out
    assert ended(*words, "--seeds", "9") == 2 and "need your word" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
