"""What two processes do in `test_sharding`: train a model that FSDP2 has dealt out, write it, read it, go on.

torchrun --nproc-per-node 2 sharded_checkpoint.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from multitune.training import checkpoints
from multitune.training.sharding import gathered, is_sharded

STEPS = 6


def make(sharded: bool) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    if sharded:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=STEPS)


def train(run: tuple, first: int, last: int) -> None:
    model, optimizer, schedule = run
    for step in range(first, last):
        torch.manual_seed(step)
        inputs, targets = torch.randn(4, 5), torch.randn(4, 3)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
        schedule.step()


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    run = make(sharded=True)
    assert is_sharded(run[0])
    train(run, 0, 3)
    state = {"cpu": torch.get_rng_state()[None]}
    checkpoints.write_checkpoint(
        folder / "checkpoint-3",
        model=run[0],
        optimizer=run[1],
        schedule=run[2],
        balancer={},
        random_states=state,
        trainer_state="{}",
        fingerprint="f",
    )
    torch.distributed.barrier()
    train(run, 3, STEPS)
    for sharded in (True, False):  # what was written whole goes on dealt out, and on one process alike
        resumed = make(sharded)
        checkpoints.load_weights(folder / "checkpoint-3", resumed[0])
        checkpoints.load_optimizer(folder / "checkpoint-3", resumed[1], resumed[2])
        train(resumed, 3, STEPS)
        for (name, end), again in zip(run[0].named_parameters(), resumed[0].parameters(), strict=True):
            assert isinstance(again, DTensor) == sharded
            difference = (gathered(end) - gathered(again)).abs().max()
            assert difference <= (0 if sharded else 1e-6), (name, float(difference))
    print("equal", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
