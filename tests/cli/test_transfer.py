"""`multitune transfer` on a small model: matrices, page, JSON; what stands is not done again."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from multitune.cli import main
from multitune.training.interrupts import Interrupted
from tests.recipes.conftest import data, model_folder, own_cache, recipe, write

__all__ = ["data", "model_folder", "own_cache", "recipe", "write"]


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def trained(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("steps/*/artifact.json")}


class Structure(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href") and value[:1] != "#"]


def test_a_run_gives_matrices_groups_and_a_page_and_resumes(recipe, write, data, tmp_path, capsys):
    recipe["tasks"]["echo"]["metrics"] = ["chrf"]
    words = ["transfer", write(recipe), "--together", "--out", tmp_path / "out"]
    assert ended(*words, "--json") == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert "3 trainings with the settings of 'joint': each task alone for 3 optimiser steps of 4 rows" in told.err
    assert answer["rows"] == ["sign", "echo"] and answer["columns"] == ["sign", "echo", "mark"]
    for row in ("sign", "echo"):
        for task in answer["columns"]:
            gain = answer["gains"][row][task]
            assert gain["value"] == pytest.approx(answer["scores"][row][task] - answer["base"][task])
            assert gain["low"] - 1e-9 <= gain["value"] <= gain["high"] + 1e-9
    assert answer["shares"]["sign"]["mark"] is None
    assert answer["advice"] in ("together", "alone") and len(answer["pairs"]) == 1
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())["gains"] == answer["gains"]

    page = (tmp_path / "out" / "transfer.html").read_text()
    found = Structure(page)
    assert found.loaded == [] and "script" not in found.tags
    assert found.tags.count("table") == 5 and found.tags.count("rect") == 4 and "title" in found.tags
    assert "prefers-color-scheme: dark" in page and 'tabindex="0"' in page

    before = trained(tmp_path / "out")
    assert set(before) == {"on-sign", "on-echo", "pair-sign-echo"}
    assert ended(*words[:2], *words[3:]) == 0, "without the pairs, as a table"
    shown = capsys.readouterr().out
    assert "share of the column's own gain" in shown and "steps:" in shown and "transfer.html" in shown
    assert trained(tmp_path / "out").items() <= before.items(), "nothing is done twice"

    rows = (data / "data/echo/train.jsonl").read_text().splitlines()
    (data / "data/echo/train.jsonl").write_text("\n".join(rows[:12]) + "\n")
    assert ended(*words[:2], *words[3:]) == 0
    after = trained(tmp_path / "out")
    assert after["on-sign"] == before["on-sign"] and after["on-echo"] != before["on-echo"]


def test_an_interrupted_run_says_how_to_go_on(recipe, write, tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted(1)

    monkeypatch.setattr("multitune.recipes.executor.run", stopped)
    assert ended("transfer", write(recipe), "--out", tmp_path / "out") == 130
    assert "Give the same command again" in capsys.readouterr().err


def test_a_mistake_leaves_nothing(recipe, write, tmp_path, capsys):
    assert ended("transfer", write(recipe), "--task", "sign", "--out", tmp_path / "out") == 2
    assert "Two tasks or more are compared" in capsys.readouterr().err and not (tmp_path / "out").exists()
