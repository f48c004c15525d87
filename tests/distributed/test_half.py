"""Half fine-tuning in two processes: the same half, frozen to the bit, dealt out by FSDP2 or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from multitune.models.config import ModelConfig
from multitune.models.loading import load_backbone

SCRIPT = Path(__file__).parent / "sharded_half.py"
FSDP2 = Path(str(files("multitune.training"))) / "launch" / "fsdp2.yaml"
LAUNCHERS = {
    "one": [],
    "ddp": ["-m", "torch.distributed.run", "--nproc-per-node", "2"],
    # accelerate deals nothing out on CPUs: there this is DDP in bfloat16, and sharded_half.py deals tensors out itself
    "fsdp2": ["-m", "accelerate.commands.launch", "--config_file", str(FSDP2), "--num_processes", "2"],
}
TRAINING = {
    "steps": 3,
    "batch_size": 4,
    "micro_batch_size": 1,
    "max_length": 64,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 2,
}

EPOCHS = {"steps": None, "epochs": 2, "batch_size": 20, "pack": "never", "learning_rate": 1e-4}
"""Two steps in every epoch."""


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_sharded_half_is_written_whole_and_gone_on_with(tmp_path: Path) -> None:
    told = run([*LAUNCHERS["ddp"], str(SCRIPT), str(tmp_path)], tmp_path)
    assert told.count("equal") == 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One recipe, run by one process, by two, and by two with FSDP2."""
    folder = tmp_path_factory.mktemp("half")
    lines = [{"input": f"say {i} " + "x " * (i % 7), "target": f"a{i % 5} " * (1 + i % 4)} for i in range(40)]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    half = {"half": {"adapt": {"method": "half"}, "training": TRAINING}}
    redrawn = {"redrawn": {"adapt": {"method": "half", "resample": "epoch"}, "training": TRAINING | EPOCHS}}
    for name, steps in (("recipe", half), ("both", half | redrawn)):
        recipe = {"model": "tiny", "tasks": {"a": {"train": "a.jsonl"}}, "score": False, "steps": steps}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    for name, launcher in LAUNCHERS.items():
        recipe = "recipe.yaml" if name == "fsdp2" else "both.yaml"
        run([*launcher, "-m", "multitune", "run", recipe, "--out", name], folder)
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_train_the_half_that_one_trains(runs: Path, name: str) -> None:
    base = dict(load_backbone(ModelConfig(name="tiny"), device="cpu").model.named_parameters())
    models = {each: runs / each / "steps" / "half" / "model" for each in ("one", name)}
    manifests = [json.loads((folder / "half.json").read_text()) for folder in models.values()]
    assert manifests[0] == manifests[1]
    one, two = (load_file(folder / "model.safetensors") for folder in models.values())
    for tensor_name, tensor in two.items():
        assert tensor.equal(base[tensor_name].data) == (tensor_name in manifests[0]["frozen"]), tensor_name
    difference = max(float((one[n].float() - two[n].float()).abs().max()) for n in one)
    assert difference <= 4e-3  # three steps of Adam at 1e-3; fsdp2.yaml asks for bfloat16


def test_two_processes_redraw_the_halves_that_one_redraws(runs: Path) -> None:
    one, two = (load_file(runs / name / "steps" / "redrawn" / "model" / "model.safetensors") for name in ("one", "ddp"))
    assert max(float((one[n].float() - two[n].float()).abs().max()) for n in one) <= 1e-4  # four steps of 1e-4
    assert sum(float((one[n].float() - two[n].float()).abs().mean()) for n in one) / len(one) <= 1e-6
    told = json.loads((runs / "ddp" / "steps" / "redrawn" / "half.json").read_text())
    base = dict(load_backbone(ModelConfig(name="tiny"), device="cpu").model.named_parameters())
    moved = {name for name, tensor in two.items() if not tensor.equal(base[name].data)}
    assert moved & set(told["frozen_in_first_epoch"])  # the second epoch trained some of them
    assert {name for name in one if not one[name].equal(base[name].data)} == moved
