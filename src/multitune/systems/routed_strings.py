"""Sixteen tasks on strings for a small encoder-decoder: what sharing and routing do in a transformer, in seconds.

A row is a marker and six symbols; its answer is the symbols in another order (of four), each replaced (in one of four
ways), and the end. The backbone is trained from nothing on the orders alone, then frozen.

Shape legend: ``N`` rows, ``I`` tokens of an input, ``O`` tokens of an answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from multitune.models.pretrained import peft_warnings_logged
from multitune.models.tuners import register_tuners
from multitune.models.tuners.mhr_tasks import routed_layers
from multitune.models.tuners.task_ids import set_task_ids
from multitune.training.alignment import gradient_alignment
from multitune.training.speeds import speed_up_routing

LENGTH, SYMBOLS = 6, 20
PADDING, END, FIRST_MARKER = 0, 1, 2
ORDERS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda text_NI: text_NI,
    lambda text_NI: text_NI.flip(1),
    lambda text_NI: text_NI.roll(-1, 1),
    lambda text_NI: text_NI.roll(LENGTH // 2, 1),
)
REPLACED: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda text_NI: text_NI,
    lambda text_NI: (text_NI + 1) % SYMBOLS,
    lambda text_NI: (text_NI + 7) % SYMBOLS,
    lambda text_NI: SYMBOLS - 1 - text_NI,
)
TASKS = len(ORDERS) * len(REPLACED)
TEST_ROWS, VALIDATION_ROWS = 32, 16  # per task
FIRST_SYMBOL = FIRST_MARKER + TASKS


def rows_of(task: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw rows of a task: inputs [N, 7] and answers [N, 7], token ids."""
    text_NI = torch.randint(SYMBOLS, (rows, LENGTH), generator=generator)
    answer_NI = REPLACED[task % len(REPLACED)](ORDERS[task // len(REPLACED)](text_NI))
    marker_N1 = torch.full((rows, 1), FIRST_MARKER + task)
    end_N1 = torch.full((rows, 1), END)
    return torch.cat([marker_N1, text_NI + FIRST_SYMBOL], 1), torch.cat([answer_NI + FIRST_SYMBOL, end_N1], 1)


def compare(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Adapt a backbone to the sixteen tasks together at every learning rate, and keep the best by validation rows.

    Returns:
        the mean loss per token of test rows before and after (``start_loss``, ``mixture_loss``), and the ``alignment``
        of the tasks' gradients after.
    """
    from peft import get_peft_model

    from multitune.models.tuners.mhr import MhrConfig

    register_tuners()
    base = backbone(seed, steps=settings["base_steps"], rate=settings["base_rate"])
    start_loss = mixture_loss(base, TEST_ROWS, seed=10**6 + seed)
    found = []
    for rate in settings["rates"]:
        config = MhrConfig(
            task_type="SEQ_2_SEQ_LM",
            tasks=[str(task) for task in range(TASKS)],
            r=settings["rank"],
            n_skills=settings["skills"],
            n_splits=settings["heads"],
        )
        with torch.random.fork_rng(), peft_warnings_logged():
            torch.manual_seed(seed)
            model = get_peft_model(copy.deepcopy(base), config)
        learn(
            model,
            range(TASKS),
            rows=settings["rows"],
            steps=settings["steps"],
            rate=rate,
            routing_rate=settings["routing_speed"] * rate,
            seed=seed,
        )
        metrics = {
            "start_loss": start_loss,
            "mixture_loss": mixture_loss(model, TEST_ROWS, seed=10**6 + seed),
            "alignment": alignment(model, TEST_ROWS, seed),
        }
        found.append((mixture_loss(model, VALIDATION_ROWS, seed=2 * 10**6 + seed), metrics))
    return min(found, key=lambda one: one[0])[1]


def batch_of(tasks: range, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``rows`` rows of each task: inputs, answers, and the task of every row."""
    drawn = [rows_of(task, rows, generator) for task in tasks]
    ids_N = torch.tensor(list(tasks)).repeat_interleave(rows)
    return torch.cat([inputs for inputs, _ in drawn]), torch.cat([answers for _, answers in drawn]), ids_N


def backbone(seed: int, *, steps: int, rate: float) -> T5ForConditionalGeneration:
    """Return a T5 of width 64 (two blocks and two), trained from nothing on the four orders without replacement."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=FIRST_SYMBOL + SYMBOLS,
            d_model=64,
            d_ff=128,
            d_kv=16,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        config.decoder_start_token_id = PADDING
        model = T5ForConditionalGeneration(config)
    orders = range(0, TASKS, len(REPLACED))
    learn(model, orders, rows=16, steps=steps, rate=rate, routing_rate=rate, seed=seed)
    return model.requires_grad_(False)


def learn(model: Any, tasks: range, *, rows: int, steps: int, rate: float, routing_rate: float, seed: int) -> None:
    """Train what requires gradients on all tasks alike: Adam, decayed linearly to zero.

    Args:
        model: plain or adapted.
        tasks: to draw from.
        rows: of every task in a step.
        steps: optimiser steps.
        rate, routing_rate: of all but routing weights, and of these.
        seed: of the rows.
    """
    generator = torch.Generator().manual_seed(7919 * seed + 1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    speed_up_routing(optimizer, model, routing_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(steps):
        inputs, answers, ids_N = batch_of(tasks, rows, generator)
        set_task_ids(model, ids_N)
        model(input_ids=inputs, labels=answers).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def mixture_loss(model: Any, rows: int, seed: int) -> float:
    """Return the mean loss per token over fresh rows of all tasks, in nats."""
    inputs, answers, ids_N = batch_of(range(TASKS), rows, torch.Generator().manual_seed(seed))
    set_task_ids(model, ids_N)
    return float(model(input_ids=inputs, labels=answers).loss)


def alignment(model: Any, rows: int, seed: int) -> float:
    """Return how far the tasks' gradients on the shared modules point the same way, on fresh rows."""
    generator = torch.Generator().manual_seed(seed)
    name = model.active_adapter
    shared = [matrix for _, layer in routed_layers(model) for matrix in (layer.mhr_A[name], layer.mhr_B[name])]

    def losses() -> Iterator[Tensor]:
        for task in range(TASKS):
            inputs, answers, ids_N = batch_of(range(task, task + 1), rows, generator)
            set_task_ids(model, ids_N)
            yield model(input_ids=inputs, labels=answers).loss

    return gradient_alignment(losses(), shared)
