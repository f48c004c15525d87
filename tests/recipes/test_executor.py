"""Runs do what is not done yet and nothing else, and end with the results of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file

from multitune.errors import MultituneError
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.reporting.run_folder import read_run
from multitune.reporting.training_curves import balance_panels, validation_panels
from multitune.scoring.scoreboard import Scoreboard


@pytest.fixture
def go(recipe, write, tmp_path):
    """Run the recipe as it stands now into one folder; return what was worked on."""

    def go(*overrides, **options):
        return list(run(load_recipe(write(recipe), overrides), tmp_path / "run", **options).done)

    return go


def test_a_run_leaves_what_the_report_reads(go, recipe, tmp_path):
    assert go() == ["base@score", "joint", "joint@score"]
    out = tmp_path / "run"
    rows = Scoreboard.load(out / "scoreboard.parquet").rows
    assert {(r["step"], r["task"]) for r in rows} == {
        (s, t) for s in ("base", "joint") for t in ("sign", "echo", "mark")
    }
    for step in ("base", "joint"):
        for task in ("sign", "echo", "mark"):
            assert (out / "steps" / step / "predictions" / f"{task}.jsonl").stat().st_size > 0
    log = [json.loads(line) for line in (out / "steps" / "joint" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3]
    card = (out / "steps" / "joint" / "model" / "README.md").read_text()
    assert "| sign | 24 |" in card
    assert "| mark | test |" in card
    assert "## Cost" in card and "| peak memory while training | " in card
    assert not (out / "steps" / "joint" / "checkpoints").exists()
    facts = json.loads((out / "run.json").read_text())
    assert facts["versions"]["multitune"]


def test_an_unchanged_recipe_does_nothing_again(go):
    go()
    assert go() == []


def test_a_changed_step_redoes_itself_and_what_reads_it(go, recipe):
    recipe["steps"] = {"first": recipe["steps"]["joint"], "second": {**recipe["steps"]["joint"], "model": "first"}}
    recipe["steps"]["first"]["export"] = recipe["steps"]["second"]["export"] = "merged"
    go()
    recipe["steps"]["second"] = {**recipe["steps"]["second"], "training": {"steps": 2, "max_length": 64}}
    assert go() == ["second", "second@score"]
    recipe["steps"]["first"] = {**recipe["steps"]["first"], "training": {"steps": 2, "max_length": 64}}
    assert go() == ["first", "first@score", "second", "second@score"]


def test_changed_scoring_scores_again_without_training(go):
    go()
    assert go("score.rows=3") == ["base@score", "joint@score"]


def test_changed_training_rows_train_again(go, data):
    go()
    path = data / "data" / "echo" / "train.jsonl"
    path.write_text(path.read_text() + '{"input": "say x", "target": "y"}\n')
    assert go() == ["joint", "joint@score"]


def test_checkpoints_of_other_settings_are_not_removed_without_a_word(recipe, write, tmp_path, caplog):
    path = write(recipe)
    inputs = tmp_path / "run" / "steps" / "joint" / "begun.json"
    run(load_recipe(path), tmp_path / "run")
    (inputs.parent / "artifact.json").unlink()
    (inputs.parent / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    with caplog.at_level("WARNING", logger="multitune"):
        run(load_recipe(path, ["steps.joint.training.learning_rate=0.001"]), tmp_path / "run")
    assert "joint: settings or data have changed" in caplog.text


@pytest.mark.parametrize("existed", [False, True])
def test_a_run_refused_for_its_model_leaves_nothing(recipe, write, tmp_path, existed):
    out = tmp_path / "run"
    if existed:
        out.mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    for model in ("./nowhere", str(tmp_path / "broken")):
        recipe["model"] = model
        with pytest.raises(MultituneError):
            run(load_recipe(write(recipe)), out)
        assert list(out.iterdir()) == [] if existed else not out.exists()


def test_fresh_forgets_everything(go):
    go()
    assert go(fresh=True) == ["base@score", "joint", "joint@score"]


def test_a_damaged_model_is_made_again(go, tmp_path):
    go()
    (path,) = (tmp_path / "run" / "steps" / "joint" / "model").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    assert go() == ["joint"]


def test_each_task_alone_and_merged_export_load_with_plain_transformers(go, recipe, tmp_path):
    from transformers import AutoModelForCausalLM

    recipe["steps"]["joint"] |= {"tasks": "each", "export": "merged"}
    go()
    for task in ("sign", "echo"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "steps" / f"joint.{task}" / "model")
        assert not hasattr(model, "peft_config")


def test_a_folder_that_is_no_run_is_left_alone(go, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(MultituneError, match=r"holds thesis\.txt"):
        go()
    assert (tmp_path / "run" / "thesis.txt").exists()


def test_two_runs_do_not_share_a_folder(go, tmp_path):
    from multitune.recipes.run_folder import locked

    with locked(tmp_path / "run"), pytest.raises(MultituneError, match="Another run"):
        go()


def test_a_file_where_the_folder_should_be_is_told(go, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(MultituneError, match="cannot be written"):
        go()


def test_an_empty_task_is_told_and_nothing_is_half_written(go, data, tmp_path):
    (data / "data" / "echo" / "train.jsonl").write_text("")
    with pytest.raises(MultituneError, match="echo"):
        go()
    assert not list((tmp_path / "run").rglob("artifact.json"))


def test_a_label_outside_the_choices_names_file_and_line(go, data):
    path = data / "data" / "sign" / "train.jsonl"
    path.write_text(path.read_text() + '{"text": "x", "label": "zero"}\n')
    with pytest.raises(MultituneError) as error:
        go()
    assert "train.jsonl:25" in str(error.value)
    assert "zero" in str(error.value)


def test_a_killed_run_goes_on_and_ends_with_the_undisturbed_weights(recipe, write, tmp_path):
    recipe["steps"]["joint"]["training"] |= {"steps": 40, "save_steps": 5}
    recipe["score"] = False
    path = write(recipe)
    run(load_recipe(path), tmp_path / "undisturbed")
    code = (
        "import sys; from pathlib import Path; from multitune.recipes.executor import run; "
        "from multitune.recipes.loading import load_recipe; run(load_recipe(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
    step = tmp_path / "killed" / "steps" / "joint"
    while process.poll() is None and not list((step / "checkpoints").glob("checkpoint-*/whole.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    interrupted = not (step / "artifact.json").exists()
    run(load_recipe(path), tmp_path / "killed")
    assert interrupted, "the run ended before it could be killed; give it more steps"
    weights = [
        load_file(tmp_path / name / "steps" / "joint" / "model" / "adapter_model.safetensors")
        for name in ("undisturbed", "killed")
    ]
    for name, tensor in weights[0].items():
        assert (tensor == weights[1][name]).all(), name
    logs = [
        (tmp_path / name / "steps" / "joint" / "log.jsonl").read_text().splitlines()
        for name in ("undisturbed", "killed")
    ]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


def test_a_balanced_and_evaluated_run_says_so_in_its_log_and_report(go, recipe, data, tmp_path):
    for task in ("sign", "echo"):
        recipe["tasks"][task]["validation"] = {"fraction": 0.25}
    recipe["steps"]["joint"]["training"] |= {
        "steps": 6,
        "balancer": {"method": "coba", "warmup_steps": 2, "window": 4},
        "eval_steps": 2,
    }
    go()
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "steps/joint/log.jsonl").read_text().splitlines()]
    assert set(lines[-1]["weights"]) == set(lines[-1]["observed"]) == {"sign", "echo"}
    evaluated = [json.loads(line) for line in (folder / "steps/joint/validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in evaluated] == [0, 2, 4, 6]
    run_of_report = read_run(folder)
    assert [panel.title for panel in balance_panels(run_of_report)] == [
        "Task weights: joint",
        "Losses that the balancer observed: joint",
    ]
    assert [panel.title for panel in validation_panels(run_of_report)] == ["joint"]
    assert go() == []
    # Other rows, all different: equal ones would stand on one side of the split, whichever that is.
    rows = [{"text": f"number {number}", "label": "minus"} for number in range(30)]
    (data / "data/sign/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "joint" in go()


def test_a_training_goes_on_from_the_model_of_one_task_alone(go, recipe, tmp_path):
    training = recipe["steps"]["joint"]["training"]
    recipe["steps"] = {
        "alone": {"tasks": "each", "export": "merged", "training": training},
        "further": {"model": "alone.sign", "tasks": ["echo"], "training": training},
    }
    assert "further" in go()
    artifact = json.loads((tmp_path / "run/steps/further/artifact.json").read_text())
    assert (artifact["model"], artifact["tasks"]) == ("alone.sign", ["echo"])
