"""The real command in a process of its own, as a user calls it, on real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

POEM = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "to", "the", "log", "while", "the", "sun"]


def multitune(*arguments, folder, expect=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "multitune", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "160", **environment},
    )
    assert done.returncode == expect, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def files(tmp_path) -> Path:
    """Two data files: words with their first letter (generate), and short or long words (label)."""
    words = [(f"{word} {place}", word) for place in range(3) for word in POEM]  # rows that differ
    first = [{"input": text, "target": word[0]} for text, word in words]
    length = [{"text": text, "label": "long" if len(word) > 3 else "short"} for text, word in words]
    for name, rows in (("first", first), ("length", length)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def recipe(files) -> Path:
    multitune("init", "first.jsonl", "length.jsonl", "--out", "recipe.yaml", folder=files)
    return files / "recipe.yaml"


SMALL = (
    "--set", "steps.joint.training.epochs=1", "--set", "steps.joint.training.batch_size=2",
    "--set", "steps.joint.training.max_length=64", "--set", "score.rows=4",
)  # fmt: skip


def test_from_files_to_a_report(recipe, files):
    plan = json.loads(multitune("check", "recipe.yaml", "--json", folder=files).stdout)
    assert {task["task"] for task in plan["nodes"][0]["tasks"]} == {"first", "length"}

    answer = json.loads(multitune("run", "recipe.yaml", "--out", "out", "--json", *SMALL, folder=files).stdout)
    assert answer["done"] == ["base@score", "joint", "joint@score"]
    page = (files / "out" / "report.html").read_text()
    assert "first" in page and "length" in page
    assert "http://" not in page and "https://" not in page  # nothing is fetched from elsewhere

    again = json.loads(multitune("run", "recipe.yaml", "--out", "out", "--json", *SMALL, folder=files).stdout)
    assert again["done"] == []

    model = files / "out" / "steps" / "joint" / "model"
    scored = json.loads(multitune("score", model, "--tasks", "recipe.yaml", "--rows", 4, "--json", folder=files).stdout)
    rows = {score["task"]: score["metrics"] for score in scored["scores"]}
    reported = json.loads((files / "out" / "steps" / "joint" / "scores.json").read_text())["rows"]
    for row in reported:
        assert rows[row["task"]][row["metric"]] == pytest.approx(row["value"])


def test_score_reads_a_suite_from_its_own_folder_and_names_a_bad_out_at_once(recipe, files):
    (files / "suites").mkdir()
    suite = "tasks: {first: {test: ../first.jsonl, held_out: true, kind: generate, max_new_tokens: 2}}\n"
    (files / "suites" / "suite.yaml").write_text(suite)
    (files / "whole.yaml").write_text("name: whole\nmodel: tiny\ntasks: suites/suite.yaml\n")
    answer = json.loads(multitune("score", "tiny", "--tasks", "whole.yaml", "--rows", 2, "--json", folder=files).stdout)
    assert answer["scores"][0]["n"] == 2
    (files / "taken").write_text("")
    done = multitune("score", "tiny", "--tasks", "whole.yaml", "--out", "taken/scores", folder=files, expect=2)
    assert "taken" in done.stderr


def test_mistakes_leave_with_code_two_and_nothing_behind(recipe, files):
    recipe.write_text(recipe.read_text().replace("kind: label", "kindd: label"))
    done = multitune("run", "recipe.yaml", "--out", "out", folder=files, expect=2)
    assert "Did you mean 'kind'" in done.stderr
    assert not (files / "out").exists()
    error = json.loads(multitune("check", "recipe.yaml", "--json", folder=files, expect=2).stdout)["error"]
    assert "kindd" in error["where"]


def test_a_model_that_cannot_be_reached_says_how_to_give_a_path(recipe, files):
    done = multitune(
        "run",
        "recipe.yaml",
        "--out",
        "out",
        "--set",
        "model=nobody/nothing",
        folder=files,
        expect=2,
        HF_HUB_OFFLINE="1",
    )
    assert "nobody/nothing" in done.stderr
    assert "path" in done.stderr


def test_an_unwritable_folder_is_told(recipe, files):
    (files / "taken").write_text("")
    assert "cannot be written" in multitune("run", "recipe.yaml", "--out", "taken/run", folder=files, expect=2).stderr


def test_html_in_the_data_stays_text_in_the_report(recipe, files):
    evil = "<script>alert(1)</script>"
    rows = ({"input": f"{evil}{i}", "target": evil} for i in range(40))
    (files / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    multitune("run", "recipe.yaml", "--out", "out", *SMALL, "--set", "score.rows=40", folder=files)
    page = (files / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_ctrl_c_finishes_the_checkpoint_and_the_same_command_goes_on(recipe, files):
    words = ["run", "recipe.yaml", "--out", "out", *SMALL, "--set", "score=false"]
    words += ["--set", "steps.joint.training.epochs=30", "--set", "steps.joint.training.save_steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "multitune", *words],
        cwd=files,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(files / "cache")},
    )
    log = files / "out" / "steps" / "joint" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "same command" in errors
    step = int(next((log.parent / "checkpoints").glob("checkpoint-*")).name.split("-")[1])
    assert step >= 1
    resumed = multitune(*words, folder=files)
    assert f"from step {step}" in resumed.stderr
    assert (log.parent / "artifact.json").exists()


def test_the_door_is_light():
    code = (
        "import sys; sys.argv = ['multitune', '--help']\n"
        "from multitune.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "names = ('torch', 'transformers', 'datasets', 'peft', 'pyarrow', 'numpy', 'pydantic')\n"
        "heavy = [name for name in names if name in sys.modules]\n"
        "print('heavy:', heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
