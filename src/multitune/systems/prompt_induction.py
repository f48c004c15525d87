"""A frozen model that knows four tasks by their markers, and prompts that have to say which one is meant.

In place of the marker every row begins with a token that the model never saw. What a prompt learns in 200 steps is to
bring out one of the tasks: it steers, and teaches nothing.
"""

from __future__ import annotations

import copy as copying
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM

from multitune.models.pretrained import peft_warnings_logged
from multitune.models.tuners import register_tuners
from multitune.models.tuners.soft_prompt_config import EptConfig
from multitune.systems.string_tasks import TASKS, StringTask, accuracy, draw, encode
from multitune.training.speeds import speed_up_prompts

NEUTRAL = 12
"""A marker that no training row has."""

TRYOUT_ROWS, TEST_ROWS = 128, 1000
WARM_UP, TIMED, ROUNDS = 5, 40, 3
"""Steps before a clock is read, steps under it, and rounds of A B B A."""


@dataclass(frozen=True)
class Learned:
    """What a prompt reached on one task.

    Attributes:
        untouched, accuracy: share of the answers' tokens that are the likeliest, before and after.
        whole: share of whole answers that are right after.
        steps: after which the accuracy first was at least 0.95, a multiple of 5; nan: never.
    """

    untouched: float
    accuracy: float
    whole: float
    steps: float


def with_prompt(base: LlamaForCausalLM, prompt: Mapping[str, Any], seed: int) -> Any:
    """Return a copy of the model with a prompt of its own, whose vectors are rows of the embedding.

    Args:
        base: left as it is.
        prompt: options of EptConfig: what it leaves out decides between EPT, DePT and prompt tuning.
        seed: of what is drawn.
    """
    register_tuners()
    with peft_warnings_logged(logging.DEBUG), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(copying.deepcopy(base), EptConfig(task_type="CAUSAL_LM", **prompt))


def learn(model: Any, task: StringTask, *, rates: Mapping[str, float], steps: int, rows: int, seed: int) -> Learned:
    """Train a prompt on one task under the neutral marker, by `training_steps`, and measure it on other rows."""
    generator = torch.Generator().manual_seed(seed + 1000)
    tryout, test = draw(TRYOUT_ROWS, generator), draw(TEST_ROWS, generator)
    neutral = neutrally(task)
    untouched, _ = accuracy(model, neutral, test)
    reached = math.nan
    for step in training_steps(model, neutral, rates=rates, steps=steps, rows=rows, seed=seed):
        if math.isnan(reached) and step % 5 == 0 and accuracy(model, neutral, tryout)[0] >= 0.95:
            reached = step
    return Learned(untouched, *accuracy(model, neutral, test), reached)


def neutrally(task: StringTask) -> StringTask:
    """Return the task under the marker that the model never saw."""
    return dataclasses.replace(task, marker=NEUTRAL)


def training_steps(
    model: Any, task: StringTask, *, rates: Mapping[str, float], steps: int, rows: int, seed: int
) -> Iterator[int]:
    """Yield after every optimiser step its number: AdamW at constant rates, weight decay 1e-5.

    Args:
        model: of `with_prompt`.
        task: its rows are drawn anew for every step.
        rates: ``prompt`` and ``offsets``.
        steps, rows: optimiser steps, and rows of each.
        seed: of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=rates["offsets"], weight_decay=1e-5)
    speed_up_prompts(optimizer, model, rates["prompt"])
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    for step in range(1, steps + 1):
        model.train()
        input_ids, labels = encode(task, draw(rows, generator))
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        yield step


def step_time_share(
    base: LlamaForCausalLM, prompt: Mapping[str, Any], reference: Mapping[str, Any], rows: int, seed: int
) -> float:
    """Return the process time of a prompt's training step as a share of another's: medians over the steps of several
    rounds A B B A, on one thread."""
    rates = {"prompt": 1e-3, "offsets": 1e-4}
    made = {"reference": with_prompt(base, reference, seed), "prompt": with_prompt(base, prompt, seed)}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    with _one_thread():
        for name in ROUNDS * ("reference", "prompt", "prompt", "reference"):
            steps = training_steps(
                made[name], neutrally(TASKS[0]), rates=rates, steps=WARM_UP + TIMED, rows=rows, seed=seed
            )
            clock = [time.process_time() for _ in steps]
            seconds[name] += [later - sooner for sooner, later in pairwise(clock[WARM_UP - 1 :])]
    return median(seconds["prompt"]) / median(seconds["reference"])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
