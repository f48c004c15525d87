"""The scan over real files: rows, folders of text, and scores split by what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from multitune.cli import main
from multitune.errors import MultituneError
from multitune.recipes.contamination import scan, scan_pairs
from multitune.scoring.predictions import Prediction, write_predictions

ITEMS = [f"the {word} house stands beside a long and winding road to the {word} town" for word in ("red", "old", "far")]


@pytest.fixture
def suite(tmp_path) -> Path:
    """Two tasks: one whose test rows are looked for, and one that is only trained."""
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text, "label": "a"}) + "\n" for text in ITEMS))
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": f"I say: {ITEMS[1].upper()}.", "label": "b"}) + "\n")
    tasks = {"homes": {"test": "test.jsonl", "held_out": True}, "other": {"train": "train.jsonl"}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    return tmp_path / "suite.yaml"


def test_the_training_rows_of_the_tasks_are_read_where_no_text_is_named(suite):
    (found,) = scan(suite, [])
    assert (found.task, found.split, found.n, found.ngram) == ("homes", "test", 3, 13)
    assert list(found.dirty) == ["test.jsonl:2"]
    match = found.dirty["test.jsonl:2"]
    assert (match.fields, match.where) == ({"text"}, "other, train.jsonl:1")
    assert found.scores["all"] is None


def test_texts_and_rows_of_a_folder_are_read(suite, tmp_path):
    text = tmp_path / "text"
    (text / "deep").mkdir(parents=True)
    (text / "a.txt").write_text("nothing\n" * 50 + ITEMS[0].replace(" ", "\n") + "\n" + "and so on\n" * 50)
    (text / "deep" / "b.jsonl").write_text(json.dumps({"turns": [{"content": f"Well, {ITEMS[2]}!"}]}) + "\n")
    (found,) = scan(suite, [text])
    assert {id: match.where.removeprefix(f"{text}/") for id, match in found.dirty.items()} == {
        "test.jsonl:1": "a.txt",
        "test.jsonl:3": "deep/b.jsonl:1",
    }


def test_scores_of_a_models_answers_are_split(suite, tmp_path):
    answers = [Prediction(f"test.jsonl:{i}", "", "", "a", "a", True, float(i == 2)) for i in (1, 2, 2, 3)]
    write_predictions(tmp_path / "predictions" / "homes.jsonl", answers)
    (found,) = scan(suite, [], predictions=tmp_path / "predictions")
    assert found.scores == {"all": pytest.approx(1 / 3), "clean": 0.0, "dirty": 1.0}
    assert found.relative == -1.0 and found.flagged
    with pytest.raises(MultituneError, match="does not exist"):
        scan(suite, [], predictions=tmp_path / "elsewhere")


def test_what_there_is_not_is_told(suite, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MultituneError, match="There is no text in"):
        scan(suite, [tmp_path / "empty"])
    suite.write_text(yaml.safe_dump({"tasks": {"homes": {"test": "test.jsonl"}}}))
    with pytest.raises(MultituneError, match="No task of the file has training rows"):
        scan(suite, [])
    suite.write_text(yaml.safe_dump({"tasks": {"other": {"train": "train.jsonl"}}}))
    with pytest.raises(MultituneError, match="No task has test or validation rows"):
        scan(suite, [])


def test_pairs_tell_which_training_task_holds_which_scored_rows(suite, tmp_path, capsys):
    (tmp_path / "clean.jsonl").write_text(json.dumps({"text": "nothing of that kind at all", "label": "b"}) + "\n")
    tasks = yaml.safe_load(suite.read_text())["tasks"] | {"clean": {"train": "clean.jsonl"}}
    suite.write_text(yaml.safe_dump({"tasks": tasks}))
    pairs = scan_pairs(suite)
    assert [(pair.trained, pair.scored, pair.dirty, pair.n) for pair in pairs] == [
        ("other", "homes", 1, 3),
        ("clean", "homes", 0, 3),
    ]
    assert pairs[0].share == pytest.approx(1 / 3) and pairs[1].example is None
    id, where, words = pairs[0].example
    assert (id, where) == ("test.jsonl:2", "other, train.jsonl:1") and words.split()[0] in ITEMS[1]
    for options in ([], ["--json"], ["--above", "0.5"]):
        with pytest.raises(SystemExit) as end:
            main(["contamination", "--tasks", str(suite), "--pairs", *options])
        told = capsys.readouterr().out
        assert end.value.code == 0
        if options == ["--json"]:
            (pair,) = json.loads(told)["pairs"]
            assert (pair["trained"], pair["scored"], pair["dirty"]) == ("other", "homes", 1)
        else:
            assert f"{0 if options else 1} of 2 pairs share more than" in told
    with pytest.raises(SystemExit):
        main(["contamination", "--tasks", str(suite), "--pairs", "--text", str(suite)])
    assert "no part in them" in capsys.readouterr().err


def test_pairs_need_training_rows(suite):
    suite.write_text(yaml.safe_dump({"tasks": {"homes": {"test": "test.jsonl", "held_out": True}}}))
    with pytest.raises(MultituneError, match="No task of the file has training rows"):
        scan_pairs(suite)
