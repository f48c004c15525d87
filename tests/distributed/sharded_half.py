"""What two processes do in `test_half`: half fine-tuning of a Llama that FSDP2 has dealt out, written and gone on with.

torchrun --nproc-per-node 2 sharded_half.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from multitune.adaptation.half import HalfRound, freeze, half_round
from multitune.adaptation.half_config import HalfConfig
from multitune.training import checkpoints
from multitune.training.sharding import gathered

STEPS = 6


def make(
    sharded: bool,
) -> tuple[HalfRound, LlamaForCausalLM, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes))
    half = half_round(model, HalfConfig(), seed=0)
    freeze(model, half)  # as in a run: before the model is dealt out and the optimiser made
    if sharded:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    return half, model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=STEPS)


def train(run: tuple, first: int, last: int) -> None:
    half, model, optimizer, schedule = run
    for step in range(first, last):
        torch.manual_seed(step)
        ids = torch.randint(3, 30, (4, 8))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        assert {n for n, p in model.named_parameters() if p.grad is None} == half.frozen
        optimizer.step()
        schedule.step()


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    before = {name: p.detach().clone() for name, p in make(sharded=False)[1].named_parameters()}
    run = make(sharded=True)
    train(run, 0, 3)
    checkpoints.write_checkpoint(
        folder / "checkpoint-3",
        model=run[1],
        optimizer=run[2],
        schedule=run[3],
        balancer={},
        random_states={"cpu": torch.get_rng_state()[None]},
        trainer_state="{}",
        fingerprint="f",
    )
    torch.distributed.barrier()
    half = run[0]
    saved = load_file(folder / "checkpoint-3" / "weights.safetensors")
    assert set(saved) == set(before) - half.frozen
    train(run, 3, STEPS)
    for name, parameter in run[1].named_parameters():
        assert torch.equal(gathered(parameter), before[name]) == (name in half.frozen), name
    for sharded in (True, False):
        resumed = make(sharded)
        assert resumed[0].frozen == half.frozen  # the same half in any number of processes
        checkpoints.load_weights(folder / "checkpoint-3", resumed[1])
        checkpoints.load_optimizer(folder / "checkpoint-3", resumed[2], resumed[3])
        train(resumed, 3, STEPS)
        for (name, end), again in zip(run[1].named_parameters(), resumed[1].parameters(), strict=True):
            difference = (gathered(end) - gathered(again)).abs().max()
            assert difference <= (0 if sharded else 1e-5), (name, float(difference))
    print("equal", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
