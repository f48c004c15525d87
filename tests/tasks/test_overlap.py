"""Test rows that stand in the training data are counted."""

from __future__ import annotations

import json

from multitune.tasks.overlap import overlap_warnings, scored_rows_in_train
from multitune.tasks.task import Task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(first, last):
    return [{"text": f"t{number}", "label": "a"} for number in range(first, last)]


def test_rows_are_the_same_when_all_their_fields_are(tmp_path):
    write(tmp_path / "train.jsonl", rows(0, 100))
    write(tmp_path / "test.jsonl", [*rows(95, 110), {"label": "a", "text": "t1"}, {"text": "t2", "label": "b"}])
    write(tmp_path / "validation.jsonl", rows(100, 120))
    task = Task(name="t", train="train.jsonl", test="test.jsonl", validation="validation.jsonl")
    assert scored_rows_in_train(task, tmp_path) == {"test": (6, 17)}  # keys in another order are the same row
    (told,) = overlap_warnings(task, tmp_path)
    assert told.startswith("t: 6 of 17 test rows also stand in train")


def test_a_share_of_train_has_nothing_in_common_with_it_duplicates_included(tmp_path):
    write(tmp_path / "train.jsonl", rows(0, 100) * 2)
    assert scored_rows_in_train(Task(name="t", train="train.jsonl", test={"fraction": 0.2}), tmp_path) == {}


def test_without_train_nothing_is_shared(tmp_path):
    write(tmp_path / "test.jsonl", rows(0, 3))
    assert scored_rows_in_train(Task(name="t", test="test.jsonl"), tmp_path) == {}
