"""Two real processes (gloo) against one: the command line as a launcher starts it, on the embedded base.

Tolerance: sums over processes are added in another order than on one, which float32 feels in the seventh digit; after a
few steps of Adam the weights agree to 1e-6 in the mean. Single ones differ more, up to 2e-4 at a learning rate of 1e-3:
where a gradient is all but zero, Adam makes a whole step of its sign. Runs of equal processes are equal to the last
bit, kills included.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from multitune.objectives.aggregation import AGGREGATIONS

MEAN_TOLERANCE, TOLERANCE = 1e-6, 2e-4
TRAINING = {
    "steps": 4,
    "batch_size": 4,
    "micro_batch_size": 1,
    "max_length": 64,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 2,
}
LONG = {**TRAINING, "steps": 24}
ARMS = {
    **{name: {"aggregation": name} for name in AGGREGATIONS},
    "unpacked": {"pack": "never"},
    "focal": {"aggregation": "task_sample_mean", "focal": {"level": "task"}},
    "coba": {"balancer": {"method": "coba", "warmup_steps": 2, "window": 4}},
    "famo": {"balancer": {"method": "famo", "losses": "training"}},
    "pcgrad": {"balancer": "pcgrad"},
    "evaluated": {"eval_steps": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two tasks as JSON lines and two recipes: one step per arm, and one long step."""
    folder = tmp_path_factory.mktemp("distributed")
    for task, rows in (("a", 60), ("b", 20)):
        for split, count in (("train", rows), ("validation", 6)):
            lines = [{"input": f"say {task} {i} " + "x " * (i % 7), "target": f"{task}{i % 5} " * (1 + i % 4)}
                     for i in range(count)]  # fmt: skip
            (folder / f"{task}-{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {t: {split: f"{t}-{split}.jsonl" for split in ("train", "validation")} for t in "ab"}
    adapt = {"method": "lora", "r": 4, "lora_dropout": 0.0}
    for name, steps in (
        ("arms", {arm: {"adapt": adapt, "training": {**TRAINING, **ARMS[arm]}} for arm in ARMS}),
        ("long", {"joint": {"adapt": {**adapt, "lora_dropout": 0.1}, "training": LONG}}),
    ):
        recipe = {"name": name, "model": "tiny", "tasks": tasks, "score": False, "steps": steps}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def start(folder: Path, recipe: str, out: str, processes: int) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "multitune", "run", f"{recipe}.yaml", "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


def until(process: subprocess.Popen, text: str) -> None:
    """Read what a run tells until a text comes by."""
    told = []
    for line in process.stdout:
        told.append(line)
        if text in line:
            return
    raise AssertionError("".join(told))


def worker(launcher: subprocess.Popen, rank: int) -> int:
    """Return the process id of one of a launcher's workers."""
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"no worker of rank {rank}")


def log_of(folder: Path, out: str, arm: str) -> list[dict]:
    return [json.loads(line) for line in (folder / out / "steps" / arm / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path, out: str, arm: str) -> dict:
    return load_file(folder / out / "steps" / arm / "model" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def both(folder) -> Path:
    """The arms done by one process, and by two."""
    finish(start(folder, "arms", "one", 1))
    finish(start(folder, "arms", "two", 2))
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_two_processes_train_what_one_trains(both, arm):
    one, two = log_of(both, "one", arm), log_of(both, "two", arm)
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
    for line, other in zip(one, two, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert line["tasks"].keys() == other["tasks"].keys()
        for name, task in line["tasks"].items():
            assert all(task[count] == other["tasks"][name][count] for count in ("tokens", "examples"))
            assert task["loss"] == pytest.approx(other["tasks"][name]["loss"], abs=1e-4)
            assert task["share"] == pytest.approx(other["tasks"][name]["share"], abs=1e-4)
    alone, together = weights_of(both, "one", arm), weights_of(both, "two", arm)
    difference = torch.cat([(alone[name] - together[name]).abs().flatten() for name in alone])
    assert difference.mean() < MEAN_TOLERANCE
    assert difference.max() < TOLERANCE


def test_a_finished_run_is_kept_by_two_processes(both):
    assert "nothing to do, 10 stood already" in finish(start(both, "arms", "two", 2))


def test_stopped_and_killed_processes_go_on_to_the_undisturbed_weights(folder):
    finish(start(folder, "long", "undisturbed", 2))

    stopped = start(folder, "long", "disturbed", 2)
    until(stopped, "step 4/24")
    os.kill(worker(stopped, 1), signal.SIGTERM)  # one process is asked; all finish the step and the checkpoint
    told, _ = stopped.communicate(timeout=300)
    assert stopped.returncode != 0
    assert "give the same command again" in told
    checkpoints = sorted((folder / "disturbed/steps/joint/checkpoints").glob("checkpoint-*/whole.json"))
    assert checkpoints, told

    killed = start(folder, "long", "disturbed", 2)
    until(killed, "step 11/24")
    os.kill(worker(killed, 1), signal.SIGKILL)
    killed.communicate(timeout=300)
    assert killed.returncode != 0
    assert not (folder / "disturbed/steps/joint/artifact.json").exists()

    told = finish(start(folder, "long", "disturbed", 2))
    assert "goes on from step" in told
    undisturbed, disturbed = (weights_of(folder, out, "joint") for out in ("undisturbed", "disturbed"))
    assert all(undisturbed[name].equal(disturbed[name]) for name in undisturbed)
    logs = [log_of(folder, out, "joint") for out in ("undisturbed", "disturbed")]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
