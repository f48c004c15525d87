"""What half fine-tuning saves: time of a step, peak memory, size of a checkpoint, against all parameters, in one run.

A Llama of 110 M parameters, 85 M of them in its 12 layers; packed rows as in `sft_throughput.py`, AdamW in float32, one
thread. Every arm is a process of its own, in the order A B B A; the figure is the process time of the steps after the
first.

    python benchmarks/half.py --steps 4 --out result.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from balancing import token_table
from sft_throughput import END, LEARNING_RATE, LONGEST, PAD, VOCABULARY, Clock, make_examples, make_tokenizer

ROWS = 2
ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "half": {"method": "half"},
    "half, by layer": {"method": "half", "granularity": "layer"},
}


def make_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
        )
    )


def run_arm(arm: str, steps: int) -> dict[str, Any]:
    import torch

    from multitune.adaptation import AdaptationConfig, adapt
    from multitune.mixing.policies import Proportional
    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone
    from multitune.training import train as training
    from multitune.training.config import TrainingConfig

    torch.set_num_threads(1)
    tokenizer, clock = make_tokenizer(), Clock()
    examples = make_examples((steps + 2) * ROWS * LONGEST // 100, "log_uniform", seed=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = token_table(examples, "rows", "train", tokenizer, folder)
        config = TrainingConfig(
            steps=steps,
            batch_size=ROWS,
            max_length=LONGEST,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup=0,
            logging_steps=1,
            save_steps=10**6,
        )
        backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="benchmark"), ())
        backbone = adapt(backbone, AdaptationConfig(**ARMS[arm]))
        clock.install()
        trained = training.train(backbone, [table], Proportional(), config, folder, seed=0)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        checkpoint = sum(path.stat().st_size for path in (folder / "checkpoints").glob("*/*.safetensors"))
    clock.losses = [(sum(task["tokens"] for task in line["tasks"].values()), line["loss"]) for line in log]
    facts = {"trainable_parameters": trained.trainable_parameters, "checkpoint_mebibytes": checkpoint / 2**20}
    return {**clock.result(arm), **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, help="run one arm and print its JSON (used by the benchmark itself)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run_arm(options.arm, options.steps)))
        return
    results = []
    for arm in (*ARMS, *reversed(ARMS)):
        command = [sys.executable, __file__, "--arm", arm, "--steps", str(options.steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        finished = subprocess.run(command, capture_output=True, text=True, env=environment)
        if finished.returncode:
            sys.exit(f"{arm} failed:\n{finished.stderr[-3000:]}")
        results.append(json.loads(finished.stdout.splitlines()[-1]))
        print(f"{arm}: {results[-1]['process_seconds'] / (options.steps - 1):.2f} process seconds a step", flush=True)
    of_arm = {arm: [result for result in results if result["arm"] == arm] for arm in ARMS}
    seconds = {arm: sum(result["process_seconds"] for result in found) for arm, found in of_arm.items()}
    summary = {
        "command": f"python benchmarks/half.py --steps {options.steps}",
        "load_at_end": os.getloadavg()[0],
        "step_time_over_full": {arm: total / seconds["full"] for arm, total in seconds.items()},
        "peak_mebibytes": {arm: max(result["peak_mebibytes"] for result in found) for arm, found in of_arm.items()},
        "checkpoint_mebibytes": {arm: found[0]["checkpoint_mebibytes"] for arm, found in of_arm.items()},
        "trainable_parameters": {arm: found[0]["trainable_parameters"] for arm, found in of_arm.items()},
    }
    print(json.dumps(summary, indent=2))
    if options.out:
        options.out.write_text(json.dumps({**summary, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
