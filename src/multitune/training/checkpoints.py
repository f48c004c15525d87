"""Checkpoints that are whole or absent, without pickle, and that give back the undisturbed run.

A checkpoint is a folder ``checkpoint-<step>``:

- ``weights.safetensors``: the parameters that train and the buffers that are saved, by name;
- ``optimizer.safetensors`` and ``optimizer.json``: state tensors and parameter groups;
- ``scheduler.json``, ``trainer_state.json``: learning-rate schedule and the Trainer's own state;
- ``balancer.safetensors``: what a balancer of tasks has seen, where there is one;
- ``random.safetensors``: generator states of every process, row by rank;
- ``whole.json``: written last: the size of every other file and the fingerprint of what is being trained.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multitune.training.losses import LossModule
from multitune.training.processes import is_main
from multitune.training.sharding import dealt_like, gathered
from multitune.training.zero import load_whole_state, master_weights, whole_state, zero_optimizer

logger = logging.getLogger("multitune.training")

MANIFEST = "whole.json"
BALANCER = "balancer.safetensors"
RANKS = "ranks.safetensors"


def write_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    balancer: dict[str, Tensor],
    random_states: dict[str, Tensor],
    trainer_state: str,
    fingerprint: str,
    ranks: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint under a temporary name and rename it when every byte is there.

    All processes call it, because sharded tensors take them all to gather; the main one writes.

    Args:
        folder: the final folder; replaced when it exists.
        model: its trainable parameters and persistent buffers are saved.
        optimizer: any optimiser whose state is tensors and numbers.
        schedule: a learning-rate scheduler with ``state_dict``.
        balancer: state of the balancer by name; empty without one, or for one that keeps no state.
        random_states: uint8 tensors [processes, bytes] by device type.
        trainer_state: the Trainer's state as JSON.
        fingerprint: of everything that determines the run; ``find_checkpoint`` resumes only on equality.
        ranks: what AdaLoRA knows of its ranks; nothing for other methods.

    Raises:
        OSError: when the disk is full or the folder cannot be written; nothing half-written keeps the final name.
    """
    weights = {name: gathered(tensor).contiguous() for name, tensor in trainable_state(model).items()}
    zero = zero_optimizer(optimizer)
    if zero:
        weights |= master_weights(model)
    tensors, rest = _flatten(whole_state(zero) if zero else optimizer.state_dict())
    if not is_main():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(weights, partial / "weights.safetensors")
        save_file(tensors, partial / "optimizer.safetensors")
        (partial / "optimizer.json").write_text(json.dumps(rest))
        (partial / "scheduler.json").write_text(json.dumps(schedule.state_dict()))
        (partial / "trainer_state.json").write_text(trainer_state)
        if balancer:
            save_file({name: tensor.contiguous() for name, tensor in balancer.items()}, partial / BALANCER)
        if ranks:
            save_file({name: tensor.contiguous().clone() for name, tensor in ranks.items()}, partial / RANKS)
        save_file(random_states, partial / "random.safetensors")
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"fingerprint": fingerprint, "sizes": sizes}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def find_checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """Return the newest whole checkpoint of this very run, or None; says what was passed over and why."""
    for path in reversed(sorted_checkpoints(folder)):
        if not is_whole(path):
            logger.warning("%s was cut short and is passed over", path)
        elif json.loads((path / MANIFEST).read_text())["fingerprint"] != fingerprint:
            logger.warning("%s belongs to other data or settings and is passed over", path)
        else:
            return path
    return None


def sorted_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders by step, oldest first."""
    paths = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(paths, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def is_whole(checkpoint: Path) -> bool:
    """Return whether every file of the checkpoint is there in full length."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text())["sizes"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in sorted_checkpoints(folder)[:-keep]:
        shutil.rmtree(path)


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the live parameters that a run changes and persistent buffers by name; tied parameters appear once."""
    saved = model.state_dict()
    if isinstance(model, LossModule):
        parameters = {name: p.data for name, p in model.changing_parameters()}
    else:
        parameters = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    return parameters | {name: b for name, b in model.named_buffers() if name in saved}


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the checkpoint's weights into the model in place."""
    saved = load_file(checkpoint / "weights.safetensors")
    for name, tensor in trainable_state(model).items():
        tensor.copy_(dealt_like(saved[name], tensor))


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Restore optimiser and schedule."""
    rest = json.loads((checkpoint / "optimizer.json").read_text())
    schedule.load_state_dict(json.loads((checkpoint / "scheduler.json").read_text()))
    if zero := zero_optimizer(optimizer):
        load_whole_state(zero, _unflatten(load_file(checkpoint / "optimizer.safetensors"), rest))
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = _unflatten(load_file(checkpoint / "optimizer.safetensors"), rest)
    for index, entries in state["state"].items():
        if isinstance(index, str):  # the optimiser of LoRA-FA names its pairs; nothing of theirs is dealt out
            continue
        like = parameters[index]
        same = {key: value for key, value in entries.items() if isinstance(value, Tensor) and value.shape == like.shape}
        entries |= {key: dealt_like(value, like) for key, value in same.items()}
    optimizer.load_state_dict(state)


def load_balancer(checkpoint: Path) -> dict[str, Tensor]:
    """Return the balancer's state by name; empty where nothing was written, as for one that keeps no state."""
    path = checkpoint / BALANCER
    return load_file(path) if path.exists() else {}


def load_ranks(checkpoint: Path) -> dict[str, Tensor]:
    """Return AdaLoRA's state by name; empty for other methods."""
    path = checkpoint / RANKS
    return load_file(path) if path.exists() else {}


def load_random_states(checkpoint: Path) -> dict[str, Tensor]:
    """Return the generator states by device type, uint8 [processes, bytes]."""
    return load_file(checkpoint / "random.safetensors")


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors named "<parameter>.<key>" and a JSON rest."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = gathered(value.detach()).contiguous()
            else:
                scalars[f"{index}.{key}"] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def _unflatten(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int | str, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *rest["scalars"].items()):
        index, key = name.rsplit(".", 1)
        state.setdefault(int(index) if index.isdigit() else index, {})[key] = value
    return {"state": state, "param_groups": rest["param_groups"]}
