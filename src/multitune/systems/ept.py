"""System 22, EPT: a short prompt with low-rank changes of the text, attention to them, and projections of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

LEARNING = {"base_steps": 900, "steps": 200, "rows": 32, "rates": {"prompt": 5e-2, "offsets": 5e-3}}
PROMPT_TUNING = {"num_virtual_tokens": 20, "r": 0, "n_spaces": 0, "fusion": False}
DEPT = {"num_virtual_tokens": 8, "r": 10, "max_length": 8, "n_spaces": 0, "fusion": False}
EPT = {"num_virtual_tokens": 8, "r": 6, "max_length": 8, "n_spaces": 2, "space_rank": 1, "fusion": True}


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Learn one prompt per task on the frozen model of a seed, and time its step against prompt tuning's.

    Returns:
        ``numbers`` that train; ``known``, the base's accuracy on the task that it knows least; per task ``untouched``,
        ``accuracy``, ``whole`` and ``steps``; ``accuracy`` and ``steps`` over the tasks; ``step_time``.
    """
    from multitune.systems.prompt_induction import learn, step_time_share, with_prompt
    from multitune.systems.string_tasks import TASKS

    base, known = _base(seed, settings["base_steps"])
    prompt, steps = settings["prompt"], settings["steps"]
    trainable = [p for p in with_prompt(base, prompt, seed).parameters() if p.requires_grad]
    metrics = {"numbers": float(sum(p.numel() for p in trainable)), "known": known}
    learning = {"rates": settings["rates"], "steps": steps, "rows": settings["rows"], "seed": seed}
    learned = {task.name: learn(with_prompt(base, prompt, seed), task, **learning) for task in TASKS}
    for name, one in learned.items():
        metrics |= {f"untouched/{name}": one.untouched, f"accuracy/{name}": one.accuracy, f"whole/{name}": one.whole}
        metrics[f"steps/{name}"] = steps if math.isnan(one.steps) else one.steps
    metrics["accuracy"] = min(one.accuracy for one in learned.values())
    metrics["steps"] = math.fsum(metrics[f"steps/{name}"] for name in learned) / len(learned)
    metrics["step_time"] = step_time_share(base, prompt, PROMPT_TUNING, settings["rows"], seed)
    return metrics


@lru_cache(maxsize=1)
def _base(seed: int, steps: int) -> tuple[Any, float]:
    """Return the frozen model that all arms of a seed steer, and its accuracy on the task that it knows least."""
    import torch

    from multitune.systems.string_tasks import TASKS, accuracy, draw, known_to

    model = known_to(seed, steps).requires_grad_(False)
    symbols = draw(1000, torch.Generator().manual_seed(seed + 500))
    return model, min(accuracy(model, task, symbols)[0] for task in TASKS)


def _arm(name: str, told: str, prompt: Mapping[str, Any]) -> Arm:
    return Arm(name, told, {**LEARNING, "prompt": dict(prompt)})


ARMS = (
    _arm("prompt tuning", "20 vectors, 1280 numbers", PROMPT_TUNING),
    _arm("DePT", "8 vectors and changes of the text of rank 10 over 8 positions, 1232 numbers", DEPT),
    _arm("EPT", "8 vectors, changes of rank 6, fusion, 2 spaces of rank 1, 1328 numbers", EPT),
)


def _accuracy_claim(key: str, arm: str) -> Claim:
    return Claim(
        key,
        f"{arm} brings out each of the four tasks with an accuracy of at least 0.95.",
        f"{arm}'s accuracy on the task where it is lowest, minus 0.95",
        lambda arms: arms[arm]["accuracy"] - 0.95,
        0.0,
        Count(3, 3),
    )


def _steps_claim(key: str, arm: str) -> Claim:
    return Claim(
        key,
        f"{arm} takes no more than 1.2 times the steps of prompt tuning to an accuracy of 0.95.",
        f"1.2 minus the steps of {arm} as a share of prompt tuning's, each the mean over the tasks",
        lambda arms: 1.2 - arms[arm]["steps"] / arms["prompt tuning"]["steps"],
        0.0,
        Count(3, 3),
    )


CLAIMS = (
    _accuracy_claim("1a", "EPT"),
    _accuracy_claim("1b", "DePT"),
    _accuracy_claim("1c", "prompt tuning"),
    Claim(
        "2",
        "A training step of EPT takes at most 0.8 of the process time of one of prompt tuning with as many numbers.",
        "0.8 minus the process time of EPT's step as a share of prompt tuning's",
        lambda arms: 0.8 - arms["EPT"]["step_time"],
        0.0,
        Count(3, 3),
    ),
    _steps_claim("3a", "EPT"),
    _steps_claim("3b", "DePT"),
)

SYSTEM = System(
    22,
    "EPT",
    "Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion",
    "arXiv 2405.11464, AAAI 2025",
    "A short prompt with low-rank offsets and several projections is better and faster than a long one.",
    "adaptation",
    Account(
        published=(
            "On 13 tasks of GLUE and SuperGLUE with T5, EPT is up to 12.9 % better, relatively, than eleven other "
            "ways of adapting, at as many numbers as a prompt of 100 vectors.",
            "It trains in 14 % less time than what it is compared with.",
        ),
        faithful=(
            "The decomposition is that of DePT and its published code: a short prompt, and A B added to the "
            "embeddings of the text by position, scaled by alpha / sqrt(r); A by Kaiming's rule, B zero.",
            "Two learning rates, and the numbers of all three arms within four hundredths of one another.",
            "Prompt tuning, DePT and EPT are one host with switches; at the start EPT is prompt tuning exactly.",
        ),
        deviates=(
            "No code of EPT is public: its fusion, F = softmax(P C' / sqrt(d)) C over the changes C of the text, and "
            "its spaces, the sum of g_k relu(P D_k) U_k under the gate g = softmax(mean(P) W), are reconstructed from "
            "the abstract. The equations of prompt tuning and of DePT are not.",
            "A Llama of 2 layers and width 64 with four string tasks in place of T5 on GLUE and SuperGLUE: this shows "
            "mechanics and cost. Whether EPT is the more accurate one cannot be shown at this scale; that needs "
            "t5-base on the 13 tasks and is not done.",
            "The position of a token is its place among the row's tokens, for answers too, and tokens from position 8 "
            "on are not changed; the code of DePT pads every input to one length.",
        ),
        used="""
steps:
  joint:
    adapt: {method: ept, num_virtual_tokens: 40, r: 30, n_spaces: 4, space_rank: 2, fusion: true}
    training: {learning_rate: 1e-3, prompt_learning_rate: 0.1}
""",
        scales={
            "small": Scale(
                "A model that knows four string tasks by their markers is frozen; 200 steps of 32 rows bring out each "
                "of them behind a token that it never saw, on one CPU core; a seed takes about two minutes.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "numbers: how many train.",
                    "known: the base's share of right answer tokens, with markers, on the task that it knows least.",
                    "untouched, accuracy: share of right answer tokens behind the unseen token, before and after, per "
                    "task; accuracy alone: the lowest.",
                    "whole: share of answers that are right as a whole.",
                    "steps: until the accuracy on 128 other rows, looked at every 5 steps, is 0.95; 200 where it never "
                    "is; steps alone: the mean over the tasks.",
                    "step_time: process time of a training step as a share of prompt tuning's: medians of 3 rounds A "
                    "B B A of 40 steps on one thread; prompt tuning's own share of itself tells the noise.",
                ),
                seeds=3,
            ),
        },
    ),
)
