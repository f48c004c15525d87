"""Few-shot scoring and the contamination scan from the command line, for people and for programs."""

from __future__ import annotations

import json

import pytest
import yaml

from multitune.cli import main
from multitune.scoring.scoreboard import Scoreboard
from tests.recipes.conftest import model_folder

__all__ = ["model_folder"]


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


@pytest.fixture
def suite(tmp_path):
    """One label task of short texts."""
    for split, rows in (("train", 12), ("test", 4)):
        lines = [{"text": f"{split} number {i}", "label": "plus" if i % 2 else "minus"} for i in range(rows)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "train": "train.jsonl", "test": "test.jsonl", "kind": "label",
        "prompt": "{{ text }}:", "target": "{{ label }}", "choices": ["minus", "plus"],
    }  # fmt: skip
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"tasks": {"sign": task}}))
    return tmp_path / "suite.yaml"


def test_a_curve_over_shots_with_every_normalisation(suite, model_folder, tmp_path, capsys):
    words = ["score", model_folder, "--tasks", suite, "--shots", "0,1,2", "--normalisation", "all", "--fixed"]
    assert ended(*words, "--out", tmp_path / "out", "--json") == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [(one["shots"], one["normalisation"]) for one in scores] == [
        (shots, name) for shots in (0, 1, 2) for name in ("none", "token", "character", "byte", "unconditional")
    ]
    assert all(one["shots_used"] == one["shots"] and len(one["prompts"]) == 16 for one in scores)
    rows = [row for row in Scoreboard.load(tmp_path / "out" / "scoreboard.parquet").rows if row["metric"] == "accuracy"]
    assert [(row["shots"], row["normalisation"]) for row in rows] == [
        (one["shots"], one["normalisation"]) for one in scores
    ]
    answers = {
        shots: [
            json.loads(line)["prompt"] for line in (tmp_path / "out/predictions" / f"{shots}-shot/sign.jsonl").open()
        ]
        for shots in (0, 1, 2)
    }
    for none, one, two in zip(*answers.values(), strict=True):
        assert none.startswith("test number") and two.endswith(f"\n\n{none}") and one.endswith(f"\n\n{none}")
        assert two.startswith(one.removesuffix(none))  # nested: the list of two begins with the list of one
    assert ended(*words) == 0
    table = capsys.readouterr().out
    assert "unconditional" in table and "shots" in table


def test_a_recipe_of_curves_alone_runs_and_is_reported(suite, model_folder, tmp_path, capsys):
    recipe = yaml.safe_load(suite.read_text()) | {"model": str(model_folder), "score": False}
    recipe["steps"] = {"few": {"do": "score", "curve": [0, 2], "rows": 3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert ended("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run") == 0
    rows = Scoreboard.load(tmp_path / "run" / "scoreboard.parquet").rows
    assert {(row["step"], row["shots"]) for row in rows} == {("few@0-shot", 0), ("few@2-shot", 2)}
    assert "How much demonstrations help" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--shots", "four"], "'four' is no number of demonstrations"),
        (["--shots", "1,1"], "'1,1' is no number of demonstrations"),
        (["--shots", "-1"], "'-1' is no number of demonstrations"),
        (["--normalisation", "tokens"], "Did you mean 'token'"),
    ],
)
def test_what_cannot_be_asked_is_told(suite, words, what, capsys):
    assert ended("score", "tiny", "--tasks", suite, *words) == 2
    assert what in " ".join(capsys.readouterr().err.split())


def test_contamination_for_people_and_for_programs(suite, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("so, TEST number 2: and more")
    words = ["contamination", "--tasks", suite, "--text", tmp_path / "text.txt", "--fewest", "3"]
    assert ended(*words, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (found["task"], found["n"], found["ngram"], found["flagged"]) == ("sign", 4, 4, False)
    assert found["dirty"] == []  # "test number 2 minus" has four words, and the text has three of them
    (tmp_path / "text.txt").write_text("so, TEST number 2: minus and more")
    assert ended(*words, "--json") == 0
    (dirty,) = json.loads(capsys.readouterr().out)["tasks"][0]["dirty"]
    assert dirty == {
        "id": "test.jsonl:3", "fields": ["label", "text"], "where": str(tmp_path / "text.txt"),
        "words": "test number 2 minus",
    }  # fmt: skip
    assert ended(*words) == 0
    assert "75.0" in capsys.readouterr().out
    assert ended(*words, "--split", "train") == 2
    assert "no split 'train' to look for" in capsys.readouterr().err


def test_every_template_of_a_task_from_the_command_line(suite, model_folder, capsys):
    told = yaml.safe_load(suite.read_text())
    told["tasks"]["sign"]["prompt"] = ["{{ text }}:", "{{ text }} is"]
    suite.write_text(yaml.safe_dump(told))
    words = ["score", model_folder, "--tasks", suite, "--templates"]
    assert ended(*words, "each", "--json") == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert [(one["template"], one["n"]) for one in scores] == [("", 8), ("1", 4), ("2", 4)]
    assert ended(*words, "every") != 0
    assert "which templates" in capsys.readouterr().err


def test_scores_by_language_from_the_command_line(suite, model_folder, capsys):
    told = yaml.safe_load(suite.read_text())
    sign = told["tasks"]["sign"]
    sign["prompt"] = ["{{ text }}:", "{{ text }} is", "Which sign? {{ text }}:"]
    told["tasks"] = {
        f"sign-{language}": {**sign, "tags": {"dataset": "sign", "language": language, "seen": seen}}
        for language, seen in (("en", "yes"), ("th", "no"))
    }
    suite.write_text(yaml.safe_dump(told))
    words = ["score", model_folder, "--tasks", suite, "--templates", "each"]
    assert ended(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    cells = [one for one in found["languages"] if one["metric"] == "accuracy"]
    assert [(one["language"], one["seen"], one["scores"]["prompts"]) for one in cells] == [
        ("en", "seen", 3),
        ("th", "unseen", 3),
    ]
    values = [one["metrics"]["accuracy"] for one in found["scores"] if one["task"] == "sign-th" and one["template"]]
    assert cells[1]["scores"]["median"] == sorted(values)[1]
    means = {one["seen"]: one["median"] for one in found["language_means"] if one["metric"] == "accuracy"}
    assert set(means) == {"all", "seen", "unseen"} and means["unseen"] == cells[1]["scores"]["median"]
    assert ended(*words) == 0
    assert "th (unseen)" in capsys.readouterr().out
