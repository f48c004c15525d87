"""Labelled tokens per second of supervised fine-tuning: multitune, trl's SFTTrainer with packing, a padded Trainer.

Every arm trains the same Llama (random weights of one seed, 32k vocabulary) on the same examples with the same
optimiser, learning rate and token-mean loss. Arms run as processes of their own in the order A B C C B A, so that drift
of the machine hits all alike; the ratio is taken over the process time of the training loop, without imports and
set-up.

    python benchmarks/sft_throughput.py --threads 2 --out result.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ARMS = ("multitune", "trl", "padded")
VOCABULARY, LONGEST, SHORTEST, PROMPT_SHARE = 32_000, 512, 10, 0.7
ROWS, PAD, END = 8, 0, 1
LEARNING_RATE = 1e-3


def make_examples(count: int, lengths: str, seed: int) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, target) token lists; their words follow one skewed distribution, so there is a loss to lower."""
    import numpy as np

    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        if lengths == "uniform":
            length = int(generator.integers(SHORTEST, LONGEST + 1))
        else:
            length = int(math.exp(generator.uniform(math.log(SHORTEST), math.log(LONGEST + 1))))
        prompt_length = max(1, min(length - 2, round(PROMPT_SHARE * length)))
        # a Zipf-like draw from a small part of the vocabulary: a unigram distribution is learnable within few steps
        words = 2 + np.minimum(generator.zipf(1.3, size=length - 1), VOCABULARY - 3)
        tokens = [*words.tolist(), END]
        examples.append((tokens[:prompt_length], tokens[prompt_length:]))
    return examples


def make_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            eos_token_id=END,
            bos_token_id=None,
        )
    )


def make_tokenizer() -> Any:
    """A tokenizer of whole words: the benchmark feeds token ids, the trainers only need the special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": END, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def shared_arguments(steps: int, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
        "gradient_accumulation_steps": 1,
        "bf16": False,
        "logging_nan_inf_filter": False,
    }


def run_multitune(examples: list, steps: int, folder: str, clock: Clock) -> None:
    from multitune.mixing.policies import Equal
    from multitune.mixing.tokens import tokenise
    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone
    from multitune.tasks.task import Source, Task
    from multitune.training import train as training
    from multitune.training.config import TrainingConfig

    tokenizer = make_tokenizer()
    tables = []
    for name, part in (("first", examples[0::2]), ("second", examples[1::2])):
        path = Path(folder) / f"{name}.jsonl"
        text = [(" ".join(f"w{i}" for i in prompt), " ".join(f"w{i}" for i in target[:-1])) for prompt, target in part]
        path.write_text("".join(json.dumps({"input": p, "target": t}) + "\n" for p, t in text))
        task = Task(
            name=name, train=Source(path=str(path)), kind="generate", prompt="{{ input }}", target="{{ target }}"
        )
        tables.append(
            tokenise(task, "train", tokenizer, "causal", Path(folder), max_length=LONGEST, cache=Path(folder) / "cache")
        )
    backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="benchmark"), ())
    config = TrainingConfig(
        steps=steps,
        batch_size=ROWS,
        max_length=LONGEST,
        aggregation="token_mean",
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup=0,
        logging_steps=1,
        save_steps=10**6,
    )
    clock.install()
    training.train(backbone, tables, Equal(), config, Path(folder), seed=0)
    log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    clock.losses = [(sum(t["tokens"] for t in line["tasks"].values()), line["loss"]) for line in log]


def run_trl(examples: list, steps: int, folder: str, clock: Clock) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [{"input_ids": p + t, "completion_mask": [0] * len(p) + [1] * len(t)} for p, t in examples]
    )
    config = SFTConfig(
        **shared_arguments(steps, folder),
        per_device_train_batch_size=ROWS,
        packing=True,
        packing_strategy="bfd",
        max_length=LONGEST,
        completion_only_loss=True,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(make_model(), config, train_dataset=data, processing_class=make_tokenizer())
    clock.install()
    trainer.train()
    clock.count_from(trainer)


def run_padded(examples: list, steps: int, folder: str, clock: Clock) -> None:
    import numpy as np
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    data = Dataset.from_list([{"input_ids": p + t, "labels": [-100] * len(p) + t} for p, t in examples])
    mean_length = np.mean([len(p) + len(t) for p, t in examples])
    arguments = TrainingArguments(
        **shared_arguments(steps, folder),
        # as many examples as the packed arms hold on average, so that a step sees as many labelled tokens
        per_device_train_batch_size=max(1, round(ROWS * LONGEST / mean_length)),
    )
    collator = DataCollatorForSeq2Seq(make_tokenizer(), padding=True)
    trainer = Trainer(make_model(), arguments, train_dataset=data, data_collator=collator)
    clock.install()
    trainer.train()
    clock.count_from(trainer)


class Clock:
    """Process and wall time of the optimiser steps after the first, and the labelled tokens that they saw."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.losses: list[tuple[int, float]] = []

    def install(self) -> None:
        """Mark every optimiser step of whatever Trainer runs next, and count labels where batches are drawn."""
        from transformers import Trainer

        clock, step, draw = self, Trainer.log, Trainer.get_batch_samples
        self.counts: list[int] = []

        def log(trainer: Any, logs: dict, *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                clock.marks.append((time.process_time(), time.perf_counter()))
            step(trainer, logs, *args, **kwargs)

        def get_batch_samples(trainer: Any, *args: Any) -> Any:
            batches, items = draw(trainer, *args)
            clock.counts.append(sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches))
            return batches, items

        Trainer.log, Trainer.get_batch_samples = log, get_batch_samples

    def count_from(self, trainer: Any) -> None:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        self.losses = list(zip(self.counts, losses, strict=False))

    def result(self, arm: str) -> dict[str, Any]:
        (cpu0, wall0), (cpu1, wall1) = self.marks[0], self.marks[-1]
        tokens = sum(count for count, _ in self.losses[1:])
        return {
            "arm": arm,
            "labelled_tokens": tokens,
            "process_seconds": cpu1 - cpu0,
            "wall_seconds": wall1 - wall0,
            "labelled_tokens_per_process_second": tokens / (cpu1 - cpu0),
            "labelled_tokens_per_wall_second": tokens / (wall1 - wall0),
            "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "losses": self.losses,
        }


def run_arm(arm: str, steps: int, lengths: str, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    rows_needed = (steps + 2) * ROWS * LONGEST
    examples = make_examples(math.ceil(rows_needed / (120 if lengths == "log_uniform" else 250)), lengths, seed=0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        {"multitune": run_multitune, "trl": run_trl, "padded": run_padded}[arm](examples, steps, folder, clock)
    return clock.result(arm)


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the runs of every arm; ratios are multitune's labelled tokens per second over the other's."""
    table: dict[str, Any] = {}
    for arm in ARMS:
        runs = [r for r in results if r["arm"] == arm]
        if runs:
            tokens = sum(r["labelled_tokens"] for r in runs)
            table[arm] = {
                "per_process_second": tokens / sum(r["process_seconds"] for r in runs),
                "per_wall_second": tokens / sum(r["wall_seconds"] for r in runs),
                "peak_mebibytes": max(r["peak_mebibytes"] for r in runs),
                "first_loss": runs[0]["losses"][0][1],
                "last_loss": sum(loss for _, loss in runs[0]["losses"][-5:]) / 5,
                "labelled_tokens_seen": sum(count for count, _ in runs[0]["losses"]),
            }
    ratios = {
        arm: {key: table["multitune"][key] / table[arm][key] for key in ("per_process_second", "per_wall_second")}
        for arm in table
        if arm != "multitune"
    }
    return {"arms": table, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, help="run one arm and print its JSON (used by the benchmark itself)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", choices=("log_uniform", "uniform"), default="log_uniform")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run_arm(options.arm, options.steps, options.lengths, options.threads)))
        return
    results = []
    for arm in (*ARMS, *reversed(ARMS)):
        command = [sys.executable, __file__, "--arm", arm, "--steps", str(options.steps), "--lengths", options.lengths]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        finished = subprocess.run(
            [*command, "--threads", str(options.threads)], capture_output=True, text=True, env=environment
        )
        if finished.returncode:
            sys.exit(f"{arm} failed:\n{finished.stderr[-3000:]}")
        results.append(json.loads(finished.stdout.splitlines()[-1]))
        print(f"{arm}: {results[-1]['labelled_tokens_per_process_second']:.0f} labelled tokens / process second")
    settings = f"--steps {options.steps} --threads {options.threads} --lengths {options.lengths}"
    summary = {"command": f"python benchmarks/sft_throughput.py {settings}", **summarise(results)}
    print(json.dumps(summary, indent=2, default=str))
    if options.out:
        options.out.write_text(json.dumps({**summary, "runs": results}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
