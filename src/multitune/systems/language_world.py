"""Four languages that rename the same sixteen symbols, and operations on them: the world of crosslingual fine-tuning.

A row is a word that says what to do, five symbols of one language, the separator, the answer in the same language, the
end. The words of the operations belong to no language, as an English prompt before a text in another.

Shape legend: ``N`` rows, ``I`` symbols (5), ``O`` symbols answered, ``S`` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from multitune.objectives.aggregation import Aggregation, count, token_weights

LANGUAGES, SYMBOLS, READS = 4, 16, 5
REPEATS = 24

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse": lambda x_NI: x_NI.flip(-1),
    "rotate": lambda x_NI: x_NI.roll(-1, -1),
    "rotate twice": lambda x_NI: x_NI.roll(-2, -1),
    "rotate back": lambda x_NI: x_NI.roll(1, -1),
    "swap ends": lambda x_NI: x_NI[:, [4, 1, 2, 3, 0]],
    "swap first": lambda x_NI: x_NI[:, [1, 0, 2, 3, 4]],
    "swap last": lambda x_NI: x_NI[:, [0, 1, 2, 4, 3]],
    "sort": lambda x_NI: x_NI.sort(-1).values,
    "sort down": lambda x_NI: x_NI.sort(-1, descending=True).values,
    "add 1": lambda x_NI: (x_NI + 1) % SYMBOLS,
    "complement": lambda x_NI: SYMBOLS - 1 - x_NI,
}
"""The eleven tasks: symbols 0 to 15, [N, I] -> [N, I]."""

LONG = "repeat"
"""A task of 120 symbols, twenty times as long as the others with their ends."""

PADDING, END, SEPARATOR = 0, 1, 2
FIRST_WORD = 3
FIRST_LANGUAGE = FIRST_WORD + len(OPERATIONS) + 1  # the words for "in this language"
FIRST_SYMBOL = FIRST_LANGUAGE + LANGUAGES
VOCABULARY = FIRST_SYMBOL + LANGUAGES * SYMBOLS


@dataclass(frozen=True)
class Cell:
    """A task in a language: what rows are drawn from.

    Attributes:
        task: a name of OPERATIONS, LONG, or "" to copy and translate.
        language: 0 (English) to 3, of what is read.
        into: of what is answered, where it is another.
    """

    task: str
    language: int
    into: int | None = None


def draw(rows: int, generator: torch.Generator) -> Tensor:
    """Return symbols of no language yet, 0 to 15, [rows, I]."""
    return torch.randint(SYMBOLS, (rows, READS), generator=generator)


def encode(cell: Cell, symbols_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token ids of whole rows and their labels, both [N, S]; labels are not shifted, -100 without loss."""
    into = cell.language if cell.into is None else cell.into
    if cell.task == "":
        word, answer_NO = FIRST_LANGUAGE + into, symbols_NI
    elif cell.task == LONG:
        word, answer_NO = FIRST_WORD + len(OPERATIONS), symbols_NI.repeat(1, REPEATS)
    else:
        word, answer_NO = FIRST_WORD + list(OPERATIONS).index(cell.task), OPERATIONS[cell.task](symbols_NI)

    def column(token: int) -> Tensor:
        return torch.full((len(symbols_NI), 1), token)

    read = [column(word), symbols_NI + FIRST_SYMBOL + cell.language * SYMBOLS, column(SEPARATOR)]
    ids = torch.cat([*read, answer_NO + FIRST_SYMBOL + into * SYMBOLS, column(END)], dim=1)
    labels = ids.clone()
    labels[:, : 2 + READS] = -100
    return ids, labels


def untrained(seed: int) -> LlamaForCausalLM:
    """Return a decoder of 2 layers and width 64."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=PADDING,
        eos_token_id=END,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(
    model: Any,
    cells: Sequence[Cell],
    *,
    steps: int,
    rate: float,
    seed: int,
    batch: int = 32,
    aggregation: Aggregation = "token_mean",
) -> None:
    """Train a model in place on fresh rows of cells drawn alike, with AdamW, its rate on a line to 0.

    Args:
        model: as of `untrained`.
        cells: what rows are drawn from.
        steps: optimiser steps.
        rate: at the first step.
        seed: of the rows.
        batch: rows of a step.
        aggregation: of token losses, as recipes name it; sample_mean is the published normalisation by target.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(cells), (batch,), generator=generator).sort().values.tolist()
        rows = [encode(cells[place], draw(chosen.count(place), generator)) for place in dict.fromkeys(chosen)]
        length = max(ids.shape[1] for ids, _ in rows)
        ids_NS = torch.cat([F.pad(ids, (0, length - ids.shape[1]), value=PADDING) for ids, _ in rows])
        labels_NS = torch.cat([F.pad(labels, (0, length - labels.shape[1]), value=-100) for _, labels in rows])
        optimizer.zero_grad()
        _loss(model, ids_NS, labels_NS, aggregation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _loss(model: Any, ids_NS: Tensor, labels_NS: Tensor, aggregation: Aggregation) -> Tensor:
    """Return the batch's loss; padding stands behind the rows, where no token that counts sees it."""
    logits_NSV, wanted_NS = model(input_ids=ids_NS).logits[:, :-1], labels_NS[:, 1:]
    counted_NS = wanted_NS != -100
    nll = F.cross_entropy(logits_NSV[counted_NS], wanted_NS[counted_NS], reduction="none")
    rows = torch.arange(len(ids_NS))[:, None].expand_as(wanted_NS)[counted_NS]
    task = torch.zeros_like(rows)
    weight = token_weights(aggregation, task, count(task, rows, 1), torch.ones(1))
    return (weight * nll).sum()


@torch.no_grad()
def exact_match(model: Any, cell: Cell, symbols_NI: Tensor) -> float:
    """Return the share of answers, ends included, that greedy decoding writes."""
    ids, labels = encode(cell, symbols_NI)
    predicted, wanted = model(input_ids=ids).logits[:, :-1].argmax(-1), labels[:, 1:]
    return float(((predicted == wanted) | (wanted == -100)).all(-1).double().mean())
