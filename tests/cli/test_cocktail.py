"""`multitune cocktail` on a small model: a page, JSON, resumption, choice by validation rows alone."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_transfer import Structure, ended
from tests.recipes.conftest import data, model_folder, own_cache, recipe, write

__all__ = ["data", "model_folder", "own_cache", "recipe", "write"]


@pytest.fixture
def words(recipe, write, tmp_path):
    for name in ("sign", "echo"):
        recipe["tasks"][name]["validation"] = {"fraction": 0.25}
    return ["cocktail", write(recipe), "--target", "sign", "--out", tmp_path / "out"]


def test_a_study_gives_effects_and_a_page_and_is_not_done_twice(words, data, tmp_path, capsys):
    words += ["--seeds", "1", "--budget", "additive"]
    assert ended(*words, "--json") == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert "5 trainings with the settings of 'joint' on echo+sign: 2 cocktails with sign, 1 seeds" in told.err
    (study,) = answer["studies"]
    assert [one["name"] for one in study["tried"]] == ["sign", "echo+sign"] and study["kind"] == "Shapley"
    assert study["tried"][0]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    gain = study["tried"][1]["test"] - study["tried"][0]["test"]
    assert study["tried"][1]["gain"]["value"] == pytest.approx(gain)
    assert study["effects"]["echo"]["value"] == pytest.approx(gain)  # one player: its Shapley value is v(all) - v({})
    assert study["control"]["trials"] == 2 and study["longer"]["beside"] == [] and study["advice"].startswith("Train")
    assert study["tried"][0]["forgotten"] is not None
    found = Structure((tmp_path / "out" / "cocktail.html").read_text())
    assert found.loaded == [] and "script" not in found.tags and found.tags.count("table") == 2

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "nodes").glob("*/artifact.json")}
    # other answers to the test rows change scores and gains, never the choice
    test = data / "data" / "sign" / "test.jsonl"
    test.write_text(test.read_text().replace("minus", "?").replace("plus", "minus").replace("?", "plus"))
    assert ended(*words) == 0
    shown = capsys.readouterr().out
    assert study["advice"].split(":")[0] in shown and "effects (Shapley)" in shown
    kept = {path: path.stat().st_mtime_ns for path in stamps}
    assert kept == stamps and len(stamps) == 5


def test_a_dry_run_trains_nothing_and_many_trainings_need_a_word(words, tmp_path, capsys):
    assert ended(*words, "--dry-run", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["examples"]["additive-echo+sign"] == {"sign": 12.0, "echo": 12.0} and not (tmp_path / "out").exists()
    assert ended(*words, "--dry-run") == 0 and "additive-sign-longer" in capsys.readouterr().out
    assert ended(*words, "--seeds", "9") == 2
    assert "need your word" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert ended(*words, "--cocktails", "some") == 2
    assert "Say all, usual, or a number" in capsys.readouterr().err
