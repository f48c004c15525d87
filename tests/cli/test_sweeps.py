"""Sweeps on the command line: their plan, the word they need when they are many, and their tables at the end."""

from __future__ import annotations

import json

import pytest

from multitune.cli import main

RECIPE = """
name: lengths
model: tiny
tasks:
  length: {train: length.jsonl, test: length.jsonl, kind: label, prompt: "{{ text }}:", target: "{{ label }}"}
score: {rows: 4}
steps:
  joint: {training: {steps: 1, batch_size: 2, max_length: 32}}
sweep:
  seed: [0, 1]
  steps.joint.training.learning_rate: {small: 1.0e-5, large: 1.0e-2}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"text": word, "label": "long" if len(word) > 3 else "short"} for word in ("cat", "mouse", "ox", "horse")]
    (tmp_path / "length.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_the_plan_counts_what_is_shared(recipe, capsys):
    assert ended("check", recipe, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["variants"][0] == "seed=0,learning_rate=small" and len(plan["variants"]) == 4
    assert (plan["nodes"], plan["shared"]) == (12, 3)  # the base is scored once
    assert len(plan["trained"]["nodes"]) == 4
    assert ended("check", recipe) == 0
    assert "12 trainings and scorings in all, 3 of them shared: 9 to do" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("verb", ["check", "run"])
def test_too_many_variants_are_refused_before_anything_is_written(recipe, tmp_path, capsys, verb):
    out = ["--out", tmp_path / "out"] if verb == "run" else []
    assert ended(verb, recipe, "--set", f"sweep.seed={list(range(13))}", *out) == 2
    assert "expands to 26 runs (13 seed x 2 learning_rate)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_ends_with_its_table_and_its_page(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    assert ended("run", recipe, "--out", out, "--set", "sweep.seed=[0]", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    (table,) = answer["effects"]
    assert (table["axis"], table["arm"], table["values"]) == ("learning_rate", "joint", ["small", "large"])
    assert len(answer["models"]) == len(answer["comparisons"]) == 2
    assert "large minus small" in (out / "report.html").read_text()
    assert ended("report", out / "variants" / "seed=0,learning_rate=large") == 0
    assert ended("run", recipe, "--out", out, "--set", "sweep.seed=[0]") == 0
    shown = capsys.readouterr().out
    assert "learning_rate: joint" in shown and "nothing to do" in shown
