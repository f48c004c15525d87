"""Routing by task against plain LoRA of the same rank and batch: process time of a forward, and of a training step.

    python benchmarks/routing.py --out result.json

One thread, order A B B A. First it is shown that with one skill both compute the same logits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from multitune.models.tuners import register_tuners
from multitune.models.tuners.mhr import MhrConfig
from multitune.models.tuners.mhr_tasks import lora_of, routed_layers
from multitune.models.tuners.task_ids import set_task_ids

RANK, SKILLS, SPLITS, TASKS = 8, 8, 8, 16
ROWS, TOKENS = 8, 128
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8000, **sizes))


def routed(skills: int) -> Any:
    tasks = [f"task {number}" for number in range(TASKS)]
    config = MhrConfig(r=RANK, n_skills=skills, n_splits=SPLITS, tasks=tasks, task_type="CAUSAL_LM")
    model = get_peft_model(base(), config)
    torch.manual_seed(1)
    for _, layer in routed_layers(model):
        layer.mhr_B["default"].data.normal_(std=0.02)
    return model


def lora() -> Any:
    options = {"r": RANK, "lora_alpha": 1, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    return get_peft_model(base(), LoraConfig(**options))


def largest_difference(ids: torch.Tensor) -> float:
    """Return the largest difference of a logit between one skill and the LoRA that it is."""
    model, plain = routed(1), lora()
    _, tensors = lora_of(model)
    plain.load_state_dict({n.replace(".weight", ".default.weight"): t for n, t in tensors.items()}, strict=False)
    with torch.no_grad():
        return float((model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max())


def seconds_of(model: Any, ids: torch.Tensor, rounds: int, *, training: bool) -> float:
    """Return process time of one forward, or of one forward and backward."""
    model.train(training)
    started = time.process_time()
    for _ in range(rounds):
        if training:
            model(input_ids=ids, labels=ids).loss.backward()
            model.zero_grad()
        else:
            with torch.no_grad():
                model(input_ids=ids)
    return (time.process_time() - started) / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register_tuners()
    ids = torch.randint(8000, (ROWS, TOKENS), generator=torch.Generator().manual_seed(2))
    result: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "rank": RANK,
        "skills": SKILLS,
        "splits": SPLITS,
        "rows": ROWS,
        "tokens": TOKENS,
        "largest_difference_with_one_skill": largest_difference(ids),
    }
    plain, mixed = lora(), routed(SKILLS)
    tasks_of = {
        "one task": torch.zeros(ROWS, dtype=torch.long),
        "every row its own task": torch.arange(ROWS),
        "four tasks in every row (packed)": torch.arange(TOKENS)
        .div(TOKENS // 4, rounding_mode="floor")
        .expand(ROWS, -1),
    }
    for name, tasks in tasks_of.items():
        set_task_ids(mixed, tasks)
        for what, training in (("forward", False), ("forward and backward", True)):
            for model in (plain, mixed):
                seconds_of(model, ids, 1, training=training)
            runs = [
                seconds_of(model, ids, arguments.rounds, training=training) for model in (plain, mixed, mixed, plain)
            ]
            ratio = (runs[1] + runs[2]) / (runs[0] + runs[3])
            result[f"{what}, {name}"] = {"lora": [runs[0], runs[3]], "mhr": [runs[1], runs[2]], "ratio": ratio}
            print(f"{what}, {name}: {ratio:.2f}", flush=True)
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
