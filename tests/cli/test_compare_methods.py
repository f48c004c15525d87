"""`multitune compare-methods` runs one recipe under several methods and tells cost beside quality."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from multitune.cli import main
from multitune.reporting.quality_and_cost import quality_against_cost
from tests.cli.test_sweeps import RECIPE


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"text": word, "label": "long" if len(word) > 3 else "short"} for word in ("cat", "mouse", "ox", "horse")]
    (tmp_path / "length.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.partition("sweep:")[0])
    return path


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_methods_are_compared_at_one_budget(recipe, tmp_path, capsys, monkeypatch):
    words = [
        "compare-methods",
        recipe,
        "--methods",
        "lora",
        "vera",
        "ia3",
        "--budget",
        "30000",
        "--out",
        tmp_path / "out",
    ]
    assert ended(*words, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["variant"]: row for row in told["methods"]}
    assert set(rows) == {"adapt=lora", "adapt=vera", "adapt=ia3"}
    assert rows["adapt=lora"]["trainable"] == 23_680
    assert all(row["trainable"] <= 30_000 for row in rows.values())
    assert rows["adapt=lora"]["bytes"] > 4 * 23_680
    for row in rows.values():
        assert 0 < row["share"] < 0.02
        assert row["peak_bytes"] > 1e8 and row["step_seconds"] > 0
        assert row["tokens_per_second"]["unmerged"] > 0 and row["tokens_per_second"]["merged"] > 0
    assert [row["mean"] for row in told["methods"]] == sorted((row["mean"] for row in rows.values()), reverse=True)
    assert (tmp_path / "out" / "report.html").exists()
    ElementTree.fromstring((tmp_path / "out" / "methods.svg").read_text())
    for columns in (80, 160):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert ended(*words) == 0  # nothing is done twice, and people see a table
        shown = capsys.readouterr().out
        assert "nothing to do" in shown and "23,680" in shown
        assert ("tokens/s" in shown) is (columns == 160)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What the models cost" in page and "23,680" in page
    assert ended(*words, "--against", "peak_bytes") == 0
    assert "peak memory while training" in (tmp_path / "out" / "methods.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "lora", "loar"), "Did you mean 'lora'?"),
        (("--methods", "lora"), "two methods or more"),
        (("--methods", "lora", "lora"), "each named once"),
        (("--methods", "lora", "vera", "--step", "joined"), "joined"),
        (("--methods", "lora", "vera", "--against", "memory"), "There is no cost 'memory'"),
    ],
)
def test_what_cannot_be_compared_is_told(recipe, tmp_path, capsys, words, message):
    assert ended("compare-methods", recipe, *words, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recipe_with_several_train_steps_must_be_told_which(recipe, tmp_path, capsys):
    recipe.write_text(recipe.read_text() + "  more: {training: {steps: 1}}\n")
    assert ended("compare-methods", recipe, "--methods", "lora", "vera", "--out", tmp_path / "out") == 2
    assert "2 train steps: joint, more" in capsys.readouterr().err


def test_names_in_the_drawing_are_text():
    row = {"variant": "<b>&", "trainable": 1000, "mean": 0.5}
    assert "&lt;b&gt;&amp;" in quality_against_cost([row])
    ElementTree.fromstring(quality_against_cost([row, row | {"variant": "c", "mean": float("nan")}]))
    ElementTree.fromstring(quality_against_cost([]))
    unknown = quality_against_cost(
        [row | {"peak_bytes": None}, row | {"variant": "d", "peak_bytes": 2e9}], "peak_bytes"
    )
    assert unknown.count("<circle") == 1
