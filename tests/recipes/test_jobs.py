"""Several nodes at once leave what one after the other leaves; a failure or a stop loses nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from multitune.errors import MultituneError
from multitune.recipes.executor import run
from multitune.recipes.failures import NodesFailed
from multitune.recipes.loading import load, load_recipe
from multitune.recipes.processes import threads_each
from multitune.recipes.run_folder import locked
from multitune.scoring.scoreboard import Scoreboard

MEASURED = (" seconds,", "| peak memory", "| time per step", "| tokens read")
"""What tells a line of a model card that differs from run to run."""


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


def results(out: Path) -> dict[str, object]:
    """Everything below a run folder that does not tell the time."""
    found: dict[str, object] = {}
    for path in sorted(out.glob("steps/**/*")):
        name = str(path.relative_to(out))
        if (path.suffix in (".safetensors", ".json") and path.name != "artifact.json") or "predictions" in path.parts:
            found[name] = path.read_bytes() if path.is_file() else None
        if path.name == "adapter_config.json":
            found[name] = {
                key: str(sorted(map(str, value)) if isinstance(value, list) else value)
                for key, value in json.loads(path.read_text()).items()
            }  # peft writes sets
        elif path.name == "log.jsonl":
            found[name] = [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        elif path.name == "README.md":
            lines = path.read_text().splitlines()
            found[name] = [line for line in lines if not any(word in line for word in MEASURED)]
    return found | {"scoreboard": Scoreboard.load(out / "scoreboard.parquet").rows}


def test_two_at_once_leave_what_one_after_the_other_leaves_and_a_failure_loses_no_other(recipe, write, data, tmp_path):
    recipe["steps"]["alone"] = {**recipe["steps"]["joint"], "tasks": "each"}
    train = data / "data" / "echo" / "train.jsonl"
    whole = train.read_text()
    train.write_text(whole + '{"input": "cut\n')
    path = write(recipe)
    out = tmp_path / "parallel"
    with pytest.raises(NodesFailed) as error:
        run(load_recipe(path, ["tasks.echo.kind=generate"]), out, jobs=2)
    assert error.value.exit_code == 2
    assert {one.what.partition(":")[0] for one in error.value.errors} == {"joint", "alone.echo"}
    assert str(error.value).count("train.jsonl:25") == 2
    assert (out / "steps" / "alone.sign" / "scores.json").exists()

    train.write_text(whole)
    mended = load_recipe(path, ["tasks.echo.kind=generate"])
    assert set(run(mended, out, jobs=2).done) == {"joint", "joint@score", "alone.echo", "alone.echo@score"}
    assert run(mended, out, jobs=2).done == ()
    run(mended, tmp_path / "sequential")
    parallel, sequential = results(out), results(tmp_path / "sequential")
    assert list(parallel) == list(sequential)
    assert {name for name in parallel if parallel[name] != sequential[name]} == set()
    assert "step 3/3" in (out / "steps" / "joint" / "train.log").read_text()


def test_a_process_that_dies_is_told_and_loses_no_other(recipe, write, data, tmp_path):
    (data / "trap.py").write_text(
        "import os\nfrom pathlib import Path\n\n\ndef rows():\n"
        "    if Path(__file__).with_name('armed').exists():\n        os._exit(7)\n"
        "    yield from ({'input': str(i), 'target': str(i)} for i in range(8))\n"
    )
    (data / "armed").write_text("")
    recipe["score"] = False
    recipe["steps"]["joint"]["tasks"] = "each"
    recipe["tasks"]["echo"] |= {"train": {"generator": "trap:rows"}, "kind": "generate"}
    path = write(recipe)
    with pytest.raises(NodesFailed) as error:
        run(load_recipe(path), tmp_path / "run", jobs=2)
    (only,) = error.value.errors
    assert only.what == "joint.echo: The process ended with code 7."
    assert error.value.exit_code == 1
    (data / "armed").unlink()
    assert run(load_recipe(path), tmp_path / "run", jobs=2).done == ("joint.echo",)


def test_a_sweep_runs_its_shared_nodes_once_in_parallel_too(recipe, write, tmp_path):
    recipe["sweep"] = {"seed": [0, 1]}
    result = run(load(write(recipe)), tmp_path / "sweep", jobs=2)
    assert result.done.count("base@score") == 1 and len(result.done) == 5
    variants = Scoreboard.load(tmp_path / "sweep" / "scoreboard.parquet").rows
    assert {row["variant"] for row in variants} == {"seed=0", "seed=1"}


def started(path: Path, out: Path, said: str) -> subprocess.Popen:
    """The command in a process of its own, as soon as two of its trainings have said something."""
    words = [sys.executable, "-m", "multitune", "run", str(path), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    while process.poll() is None and sum(said in log.read_text() for log in out.glob("steps/*/train.log")) < 2:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    return process


def is_free(out: Path) -> bool:
    try:
        with locked(out):
            return True
    except MultituneError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_stopped_nodes_leave_checkpoints_and_go_on(recipe, write, tmp_path, number):
    recipe["score"] = False
    recipe["steps"]["joint"] |= {"tasks": "each"}
    recipe["steps"]["joint"]["training"] |= {
        "steps": 1000,
        "save_steps": 100000,
        "batch_size": 32,
        "micro_batch_size": 4,
    }
    path, out = write(recipe), tmp_path / "run"
    process = started(path, out, "step 1/1000")
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130, errors
        assert "Give the same command again" in errors
    while not is_free(out):  # the processes hold on to the lock until they have stopped
        time.sleep(0.05)
    found = {path.parent.parent.name: path.name for path in out.glob("steps/*/checkpoints/checkpoint-*")}
    assert set(found) == {"joint.sign", "joint.echo"}
    assert not list(out.glob("steps/*/artifact.json"))
    process = started(path, out, "goes on from step")
    process.send_signal(signal.SIGINT)
    process.communicate()
    for node, checkpoint in found.items():
        step = checkpoint.removeprefix("checkpoint-")
        assert f"{node} goes on from step {step}\n" in (out / "steps" / node / "train.log").read_text()


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    assert threads_each(3) == int(os.environ["OMP_NUM_THREADS"])
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [threads_each(jobs) for jobs in (1, 2, 3, 9)] == [8, 4, 2, 1]
