"""What every balancer costs: time of an optimiser step relative to fixed equal weights, in one run.

The same Llama of 14 M parameters, packed rows and four tasks as in `sft_throughput.py`; only the objective differs.
Every arm is a process of its own, in the order A B ... B A, so that drift of the machine hits all alike; the figure is
the process time of the steps after the first, observations of validation losses included.

    python benchmarks/balancing.py --steps 6 --out result.json
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

from sft_throughput import LEARNING_RATE, LONGEST, Clock, make_examples, make_model, make_tokenizer

TASKS, ROWS, VALIDATION_ROWS = 4, 8, 40
ARMS: dict[str, dict[str, Any]] = {
    "task_token_mean (case 3)": {},
    "token_mean (case 1)": {"aggregation": "token_mean"},
    "focal, sample level": {"aggregation": "task_sample_mean", "focal": {"level": "sample"}},
    "focal, task level": {"aggregation": "task_sample_mean", "focal": {"level": "task"}},
    "coba": {"balancer": {"method": "coba"}},
    "self_paced": {"balancer": {"method": "self_paced"}},
    "famo": {"balancer": {"method": "famo"}},
    "famo, training losses": {"balancer": {"method": "famo", "losses": "training"}},
    "uncertainty": {"balancer": {"method": "uncertainty"}},
    "gradnorm": {"balancer": {"method": "gradnorm"}},
    "pcgrad": {"balancer": {"method": "pcgrad"}},
    "cagrad": {"balancer": {"method": "cagrad"}},
    "nash": {"balancer": {"method": "nash"}},
}
REFERENCE = next(iter(ARMS))


def token_table(examples: list, name: str, split: str, tokenizer: Any, folder: Path) -> Any:
    from multitune.mixing.tokens import tokenise
    from multitune.tasks.task import Source, Task

    path = folder / f"{name}-{split}.jsonl"
    with path.open("w") as file:
        for prompt, target in examples:
            words = [" ".join(f"w{token}" for token in tokens) for tokens in (prompt, target[:-1])]
            file.write(json.dumps({"input": words[0], "target": words[1]}) + "\n")
    source = Source(path=str(path))
    task = Task(name=name, train=source, kind="generate", prompt="{{ input }}", target="{{ target }}")
    return tokenise(task, "train", tokenizer, "causal", folder, max_length=LONGEST, cache=folder / "cache")


def run_arm(arm: str, steps: int) -> dict[str, Any]:
    import torch

    from multitune.mixing.policies import Equal
    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone
    from multitune.training import train as training
    from multitune.training.config import TrainingConfig

    torch.set_num_threads(1)
    tokenizer, clock = make_tokenizer(), Clock()
    examples = make_examples((steps + 2) * ROWS * LONGEST // 100, "log_uniform", seed=0)
    held_out = make_examples(TASKS * VALIDATION_ROWS, "log_uniform", seed=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables, validation = (
            [token_table(rows[task::TASKS], f"task{task}", split, tokenizer, folder) for task in range(TASKS)]
            for rows, split in ((examples, "train"), (held_out, "validation"))
        )
        config = TrainingConfig(
            steps=steps,
            batch_size=ROWS,
            max_length=LONGEST,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup=0,
            logging_steps=1,
            save_steps=10**6,
            **ARMS[arm],
        )
        backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="benchmark"), ())
        clock.install()
        training.train(backbone, tables, Equal(), config, folder, seed=0, validation=validation)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    clock.losses = [(sum(task["tokens"] for task in line["tasks"].values()), line["loss"]) for line in log]
    result = clock.result(arm)
    result["task_losses"] = {task: sums["loss"] for task, sums in log[-1]["tasks"].items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, help="run one arm and print its JSON (used by the benchmark itself)")
    parser.add_argument("--steps", type=int, default=6)
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
    seconds = {arm: sum(r["process_seconds"] for r in results if r["arm"] == arm) for arm in ARMS}
    memory = {arm: max(r["peak_mebibytes"] for r in results if r["arm"] == arm) for arm in ARMS}
    summary = {
        "command": f"python benchmarks/balancing.py --steps {options.steps}",
        "step_time_over_case_3": {arm: total / seconds[REFERENCE] for arm, total in seconds.items()},
        "peak_mebibytes": memory,
    }
    print(json.dumps(summary, indent=2))
    if options.out:
        options.out.write_text(json.dumps({**summary, "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
