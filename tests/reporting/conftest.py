"""Builds run folders as `multitune run` leaves them: real files, with scores that follow from the predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from multitune.scoring.predictions import Prediction, write_predictions
from multitune.scoring.scoreboard import Scoreboard

TRAINED = {"sst2": 300, "subj": 300, "mpqa": 260, "tweet_emotion": 200, "tweet_offensive": 180, "clinc150": 400}
HELD_OUT = {"copy_letters": 120, "reverse_words": 120, "sort_numbers": 120}
BASE_ACCURACY = dict(zip(TRAINED, (0.52, 0.5, 0.66, 0.27, 0.7, 0.02), strict=True))
JOINT_ACCURACY = dict(zip(TRAINED, (0.84, 0.9, 0.85, 0.71, 0.7, 0.82), strict=True))
ALONE_ACCURACY = dict(zip(TRAINED, (0.83, 0.91, 0.81, 0.58, 0.71, 0.83), strict=True))


def recipe(seed: int, alone: bool, name: str = "first-light") -> dict[str, Any]:
    tasks: dict[str, Any] = {
        task: {"train": f"data/{task}/train.jsonl", "test": f"data/{task}/test.jsonl", "kind": "label"}
        for task in TRAINED
    }
    tasks |= {task: {"test": {"generator": f"synthetic:{task}"}, "held_out": True} for task in HELD_OUT}
    joint = {"do": "train", "tasks": "all", "mixture": {"policy": "temperature", "temperature": 2}}
    joint |= {"adapt": {"method": "lora", "r": 16}, "training": {"epochs": 1, "learning_rate": 5e-4}}
    steps = {"joint": joint} | ({"alone": joint | {"tasks": "each"}} if alone else {})
    return {"name": name, "seed": seed, "model": {"name": "tiny"}, "tasks": tasks, "steps": steps}


def answers_to(task: str, accuracy: float, n: int, generator: np.random.Generator) -> list[Prediction]:
    """One answer per example; examples that are easy in one model are easy in all, as in life."""
    difficulty_n = np.random.default_rng(len(task)).permutation(n) / n
    right_n = difficulty_n + generator.normal(0, 0.08, n) < accuracy
    return [
        Prediction(
            id=f"test.jsonl:{i}",
            where=f"data/{task}/test.jsonl:{i + 1}",
            prompt=f"Review: sentence {i} of {task}, told at some length so that a line has to wrap.\nLabel:",
            prediction="positive" if right_n[i] else "negative",
            reference="positive",
            correct=bool(right_n[i]),
            score=float(right_n[i]),
        )
        for i in range(n)
    ]


def write_log(folder: Path, tasks: list[str], generator: np.random.Generator, steps: int) -> None:
    lines = []
    for step in range(10, steps + 1, 10):
        losses = {
            task: 0.25 + 0.1 * i + 2.5 * np.exp(-step / (60 + 25 * i)) + abs(generator.normal(0, 0.08))
            for i, task in enumerate(tasks)
        }
        sums = {
            task: {
                "loss": float(losses[task]),
                "tokens": 400 + 120 * i,
                "examples": 200 - 10 * i,
                "share": 1 / len(tasks),
            }
            for i, task in enumerate(tasks)
        }
        record = {
            "step": step,
            "loss": float(np.mean(list(losses.values()))),
            "learning_rate": 5e-4,
            "grad_norm": 1.0,
            "tasks": sums,
            "repeats": {task: 0.01 * step * (1 + i / 4) for i, task in enumerate(tasks)},
            "tokens_per_second": float(21000 + generator.normal(0, 700)),
            "labelled_tokens_per_second": float(6000 + generator.normal(0, 200)),
            "seconds": 1.6,
        }
        lines.append(json.dumps(record))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_run(folder: Path, *, seed: int = 0, alone: bool = True, name: str = "first-light") -> Path:
    """Write a finished run of six training tasks and three held-out tasks."""
    generator = np.random.default_rng(seed)
    settings = recipe(seed, alone, name)
    rows: list[dict[str, Any]] = []

    def scored(node: str, task: str, accuracy: float, n: int, metric: str) -> None:
        answers = answers_to(task, accuracy, n, generator)
        write_predictions(folder / "steps" / node / "predictions" / f"{task}.jsonl", answers)
        value = sum(answer.score for answer in answers) / n
        shared = {"run": name, "step": node, "model": "tiny", "task": task, "split": "test", "n": n, "seed": seed}
        rows.append(shared | {"metric": metric, "value": value, "low": value - 0.05, "high": value + 0.05})
        if metric == "accuracy":
            macro = value * 0.97
            rows.append(shared | {"metric": "macro_f1", "value": macro, "low": macro - 0.06, "high": macro + 0.06})

    for task, n in TRAINED.items():
        scored("base", task, BASE_ACCURACY[task], n, "accuracy")
        scored("joint", task, JOINT_ACCURACY[task], n, "accuracy")
        if alone:
            scored(f"alone.{task}", task, ALONE_ACCURACY[task], n, "accuracy")
    for i, (task, n) in enumerate(HELD_OUT.items()):
        scored("base", task, 0.6 - 0.2 * i, n, "exact_match")
        scored("joint", task, 0.45 - 0.05 * i, n, "exact_match")

    for node in dict.fromkeys(row["step"] for row in rows):
        if node != "base":
            tasks = list(TRAINED) if node == "joint" else [node.partition(".")[2]]
            write_log(folder / "steps" / node, tasks, generator, 400 if node == "joint" else 150)
            model = folder / "steps" / node / "model"
            model.mkdir()
            adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny"}
            (model / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
        artifact = {"fingerprint": "0" * 64, "node": node}
        (folder / "steps" / node / "artifact.json").write_text(json.dumps(artifact), encoding="utf-8")
    facts = {
        "command": "multitune run recipe.yaml --out runs/first-light",
        "started": "2026-11-20T10:00:00+00:00",
        "seconds": 83.4,
        "machine": {"processor": "2 cores", "memory_gib": 8, "accelerator": "none"},
        "versions": {"multitune": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    }
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    Scoreboard(rows).save(folder / "scoreboard.parquet")
    return folder


@pytest.fixture
def sample_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a finished run below a temporary folder."""

    def build(folder: str = "run", **settings: Any) -> Path:
        return write_run(tmp_path / folder, **settings)

    return build


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """Give the log back as it was: a command sends it to its own console."""
    logger = logging.getLogger("multitune")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before
