"""Predictions come back from their file as they went in, and the file is whole or absent."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneError
from multitune.scoring.predictions import Prediction, read_predictions, write_predictions

ROWS = [
    Prediction("a.jsonl:0", "a.jsonl:1", "Is it good?\n«so»", "yes", "no", False, 0.0),
    Prediction("a.jsonl:1", "a.jsonl:2", "How much?", 2.5, 3.0, None, 0.25),
]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "predictions" / "a.jsonl"
    write_predictions(path, ROWS)
    assert read_predictions(path) == ROWS
    write_predictions(path, ROWS[:1])
    assert read_predictions(path) == ROWS[:1]
    assert [file.name for file in path.parent.iterdir()] == ["a.jsonl"]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_predictions(path, ROWS)

    def failing():
        yield ROWS[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_predictions(path, failing())
    assert read_predictions(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("line", ['{"id": "a"', "[1, 2]", '{"id": "a", "unknown": 1}'])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    write_predictions(path, ROWS)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(MultituneError) as refused:
        read_predictions(path)
    assert refused.value.where == f"{path}:3"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MultituneError, match="does not exist"):
        read_predictions(tmp_path / "a.jsonl")
