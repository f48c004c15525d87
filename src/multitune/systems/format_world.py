"""A target task with two answers, learned by a tiny decoder that knows four string tasks: what happens to these.

The target reads five symbols without a marker and answers YES where the first is one of the lower ten, else NO.

Shape legend: ``N`` rows, ``I`` symbols read (5), ``S`` tokens of a row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from multitune.models.task_prompts import attach_prompts, detach_prompts, fresh_prompts
from multitune.models.tuners.task_ids import read_prompt_of
from multitune.systems.string_tasks import (
    END,
    FIRST_SYMBOL,
    READS,
    SEPARATOR,
    SYMBOLS,
    TASKS,
    accuracy,
    draw,
    encode,
)
from multitune.training.format_probe import format_alignment, permutation

YES, NO = FIRST_SYMBOL - 2, FIRST_SYMBOL - 1
"""Two markers that no training row of the four tasks has."""

TARGET = "target"
TEST_ROWS, PROBE_ROWS = 1000, 256


def encode_target(symbols_NI: Tensor, order: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Return token ids and labels of the target's rows, [N, S]; labels are not shifted, -100 without loss.

    Args:
        symbols_NI: what the rows read.
        order: every row gets the answer of another one; None: its own.
    """
    answer_N1 = torch.where(symbols_NI[:, :1] < SYMBOLS // 2, YES, NO)
    if order is not None:
        answer_N1 = answer_N1[order]
    read = [symbols_NI + FIRST_SYMBOL, torch.full_like(answer_N1, SEPARATOR)]
    input_ids = torch.cat([*read, answer_N1, torch.full_like(answer_N1, END)], dim=1)
    labels = input_ids.clone()
    labels[:, : READS + 1] = -100
    return input_ids, labels


def prompted(base: LlamaForCausalLM, vectors: int, init: str, seed: int, *, trains: bool) -> LlamaForCausalLM:
    """Return a copy of the model behind a fresh prompt for the target."""
    model = copy.deepcopy(base)
    kind: Any = init
    attach_prompts(model, fresh_prompts(model, [TARGET], vectors, kind, seed), trains=trains)
    read_prompt_of(model, TARGET)
    return model


def learned_prompt(base: LlamaForCausalLM, *, vectors: int, rate: float, steps: int, rows: int, seed: int) -> Tensor:
    """Return the prompt of stage 1 [s, d]: trained on the target before a frozen model."""
    model = prompted(base.requires_grad_(False), vectors, "vocabulary", seed, trains=True)
    for _ in training_steps(model, rate=rate, steps=steps, rows=rows, seed=seed):
        pass
    return detach_prompts(model)[TARGET]


def behind(base: LlamaForCausalLM, prompt_sd: Tensor) -> LlamaForCausalLM:
    """Return a copy of the model behind a frozen prompt."""
    model = copy.deepcopy(base)
    attach_prompts(model, {TARGET: prompt_sd})
    read_prompt_of(model, TARGET)
    return model


def training_steps(model: Any, *, rate: float, steps: int, rows: int, seed: int) -> Iterator[int]:
    """Yield after every optimiser step on the target its number: AdamW on what requires gradients, at a constant rate.

    Args:
        model: behind a prompt or not.
        rate, steps, rows: learning rate, optimiser steps, and rows of each.
        seed: of the rows.
    """
    generator = torch.Generator().manual_seed(seed + 2000)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=rate)
    for step in range(1, steps + 1):
        model.train()
        input_ids, labels = encode_target(draw(rows, generator))
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        yield step


@torch.no_grad()
def measured(model: Any, seed: int) -> dict[str, float]:
    """Return ``own``, the share of right answers of the target, asked as it was trained; and without the prompt
    ``old``, the mean token accuracy of the four tasks, and ``format``, the share of their answers that begin with YES
    or NO."""
    model.eval()
    generator = torch.Generator().manual_seed(seed + 3000)
    symbols_NI = draw(TEST_ROWS, generator)
    input_ids, _ = encode_target(symbols_NI)
    first_N = model(input_ids=input_ids[:, : READS + 1]).logits[:, -1].argmax(-1)
    found = {"own": float((first_N == input_ids[:, READS + 1]).double().mean())}
    read_prompt_of(model, "one of the four")
    found["old"] = sum(accuracy(model, task, symbols_NI)[0] for task in TASKS) / len(TASKS)
    begun = [model(input_ids=encode(task, symbols_NI)[0][:, : READS + 2]).logits[:, -1].argmax(-1) for task in TASKS]
    found["format"] = _format_rate(torch.cat(begun))
    read_prompt_of(model, TARGET)
    return found


@torch.no_grad()
def prompted_format(model: Any, seed: int) -> tuple[float, float]:
    """Return the share of the target's rows that are answered YES or NO behind the prompt, and of right answers."""
    model.eval()
    input_ids, _ = encode_target(draw(TEST_ROWS, torch.Generator().manual_seed(seed + 3000)))
    first_N = model(input_ids=input_ids[:, : READS + 1]).logits[:, -1].argmax(-1)
    return _format_rate(first_N), float((first_N == input_ids[:, READS + 1]).double().mean())


def format_cosine(model: Any, seed: int) -> float:
    """Return the cosine between the gradients of true and of permuted answers, over the matrices of all layers."""
    model.eval()
    symbols_NI = draw(PROBE_ROWS, torch.Generator().manual_seed(seed + 4000))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        found: Tensor = model(input_ids=batch[0], labels=batch[1]).loss
        return found

    true, permuted = encode_target(symbols_NI), encode_target(symbols_NI, permutation(PROBE_ROWS, seed))
    return format_alignment(loss, true, permuted, layer_matrices(model))


def layer_matrices(model: Any) -> list[nn.Parameter]:
    """Return the weights of the linear maps in the layers."""
    return [weight for name, weight in model.model.layers.named_parameters() if weight.ndim == 2]


def _format_rate(tokens_N: Tensor) -> float:
    return float(((tokens_N == YES) | (tokens_N == NO)).double().mean())
