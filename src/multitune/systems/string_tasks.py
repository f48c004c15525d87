"""Four string tasks under markers, and a tiny decoder that knows them: what the small reproductions of prompts steer.

40 tokens: padding, end, separator, 17 markers, 20 symbols. A row is a marker, five symbols, the separator, the answer,
the end; only answer and end carry loss.

Shape legend: ``N`` rows, ``I`` symbols read (5), ``O`` symbols answered, ``S`` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

PADDING, END, SEPARATOR, FIRST_MARKER, FIRST_SYMBOL = 0, 1, 2, 3, 20
SYMBOLS, READS = 20, 5
VOCABULARY = FIRST_SYMBOL + SYMBOLS


@dataclass(frozen=True)
class StringTask:
    """A function of five symbols under a marker.

    Attributes:
        name: as in tables.
        marker: the first token of its rows, 3 to 19.
        answer: symbols 0 to 19, integers [N, I] -> [N, O].
    """

    name: str
    marker: int
    answer: Callable[[Tensor], Tensor]


TASKS = (
    StringTask("copy", FIRST_MARKER, lambda symbols_NI: symbols_NI),
    StringTask("reverse", FIRST_MARKER + 1, lambda symbols_NI: symbols_NI.flip(-1)),
    StringTask("add 1", FIRST_MARKER + 2, lambda symbols_NI: (symbols_NI + 1) % SYMBOLS),
    StringTask("sort", FIRST_MARKER + 3, lambda symbols_NI: symbols_NI.sort(-1).values),
)


def draw(rows: int, generator: torch.Generator) -> Tensor:
    """Return symbols to read, [rows, I]."""
    return torch.randint(SYMBOLS, (rows, READS), generator=generator)


def encode(task: StringTask, symbols_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token ids of whole rows and their labels, both [N, S]; labels are not shifted, -100 without loss."""

    def column(token: int) -> Tensor:
        return torch.full((len(symbols_NI), 1), token)

    answer_NO = task.answer(symbols_NI) + FIRST_SYMBOL
    read = [column(task.marker), symbols_NI + FIRST_SYMBOL, column(SEPARATOR)]
    input_ids = torch.cat([*read, answer_NO, column(END)], dim=1)
    labels = input_ids.clone()
    labels[:, : 2 + READS] = -100
    return input_ids, labels


def known_to(seed: int, steps: int = 900) -> LlamaForCausalLM:
    """Return a decoder of 2 layers and width 64 that was trained on all tasks: AdamW from 2e-3 on a line to 0.

    Args:
        seed: of weights and rows.
        steps: of 64 rows, 16 of every task.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=PADDING,
        eos_token_id=END,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(steps):
        rows = [encode(task, draw(16, generator)) for task in TASKS]
        input_ids, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, task: StringTask, symbols_NI: Tensor) -> tuple[float, float]:
    """Return the share of answer tokens, ends included, that are the likeliest after those before them, and the share
    of answers of which all are: those that greedy decoding writes."""
    model.eval()
    input_ids, labels = encode(task, symbols_NI)
    predicted, wanted = model(input_ids=input_ids).logits[:, :-1].argmax(-1), labels[:, 1:]
    right = (predicted == wanted) | (wanted == -100)
    return float(right[wanted != -100].double().mean()), float(right.all(-1).double().mean())
