"""The Scoreboard keeps one row per key and survives its file."""

from __future__ import annotations

import math

import pytest

from multitune.errors import MultituneError
from multitune.scoring.score import TaskScore
from multitune.scoring.scoreboard import COLUMNS, Scoreboard, measures, score_rows


def row(step: str, task: str = "sst2", metric: str = "accuracy", value: float = 0.5, **changes) -> dict:
    rest = {
        "run": "first",
        "model": "tiny",
        "split": "test",
        "low": value - 0.1,
        "high": value + 0.1,
        "n": 100,
        "seed": 0,
    }
    return {"step": step, "task": task, "metric": metric, "value": value, **rest, **changes}


def test_what_is_saved_is_loaded(tmp_path):
    board = Scoreboard([row("base"), row("joint", value=0.75), row("joint", "stsb", "pearson", math.nan)])
    path = tmp_path / "run" / "scoreboard.parquet"
    board.save(path)
    loaded = Scoreboard.load(path).rows
    assert [tuple(one) for one in loaded] == [COLUMNS] * 3
    assert loaded[:2] == board.rows[:2]
    assert math.isnan(loaded[2]["value"])
    assert [file.name for file in path.parent.iterdir()] == ["scoreboard.parquet"]


def test_one_that_does_not_exist_is_empty_and_an_empty_one_can_be_kept(tmp_path):
    assert Scoreboard.load(tmp_path / "none.parquet").rows == []
    Scoreboard().save(tmp_path / "empty.parquet")
    assert Scoreboard.load(tmp_path / "empty.parquet").rows == []


def test_a_row_of_the_same_key_is_replaced_in_its_place():
    board = Scoreboard([row("base"), row("joint", value=0.6)])
    board.append([row("base", value=0.9), row("base", seed=1, value=0.1)])
    assert [(one["step"], one["seed"], one["value"]) for one in board.rows] == [
        ("base", 0, 0.9),
        ("joint", 0, 0.6),
        ("base", 1, 0.1),
    ]


def test_a_row_with_other_columns_is_refused():
    with pytest.raises(ValueError, match="row has the keys"):
        Scoreboard([{"task": "sst2"}])


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"no parquet"]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "scoreboard.parquet"
    Scoreboard([row("base")]).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MultituneError) as refused:
        Scoreboard.load(path)
    assert refused.value.where == str(path)


def test_another_parquet_file_is_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "scoreboard.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"task": ["sst2"]}), path)
    with pytest.raises(MultituneError):
        Scoreboard.load(path)


def test_scores_become_one_row_per_metric():
    score = TaskScore(
        "sst2", "test", 40, {"accuracy": 0.5, "macro_f1": 0.4}, {"accuracy": (0.3, 0.7), "macro_f1": (0.2, 0.6)}, []
    )
    rows = score_rows(measures([score]), run="first", step="joint", model="tiny", seed=3)
    assert [(one["metric"], one["value"], one["low"], one["high"], one["n"]) for one in rows] == [
        ("accuracy", 0.5, 0.3, 0.7, 40),
        ("macro_f1", 0.4, 0.2, 0.6, 40),
    ]
    assert Scoreboard(rows).rows == rows
