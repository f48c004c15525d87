"""36 tasks that are made of six operations, and a tiny decoder that learns them: the world of instruction tuning.

A task is an ordered pair of operations on five symbols, told by two tokens: an instruction that was never seen is made
of words that were. 21 tokens: padding, end, separator, a token that says nothing, six operations, eleven symbols. A row
is two operations, five symbols, the separator, the answer, the end.

Shape legend: ``N`` rows, ``I`` symbols (5), ``S`` tokens of a row (14), ``P`` pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

PADDING, END, SEPARATOR, NOTHING, FIRST_OPERATION, FIRST_SYMBOL = 0, 1, 2, 3, 4, 10
SYMBOLS, READS = 11, 5
VOCABULARY = FIRST_SYMBOL + SYMBOLS
LENGTH = 2 + READS + 1 + READS + 1

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse": lambda symbols_NI: symbols_NI.flip(-1),
    "rotate": lambda symbols_NI: symbols_NI.roll(-1, -1),
    "swap ends": lambda symbols_NI: symbols_NI[:, [4, 1, 2, 3, 0]],
    "sort": lambda symbols_NI: symbols_NI.sort(-1).values,
    "add 1": lambda symbols_NI: (symbols_NI + 1) % SYMBOLS,
    "add the one before": lambda symbols_NI: (symbols_NI + symbols_NI.roll(1, -1)) % SYMBOLS,
}

Packing = Literal["alone", "masked", "open"]


@dataclass(frozen=True)
class Pair:
    """A task: one operation after the other.

    Attributes:
        first, second: names of OPERATIONS; the first is the task's category.
    """

    first: str
    second: str

    @property
    def name(self) -> str:
        """As in tables."""
        return f"{self.first}, {self.second}"

    def answer(self, symbols_NI: Tensor) -> Tensor:
        """Return what the task makes of symbols 0 to 10, integers [N, I] -> [N, I]."""
        return OPERATIONS[self.second](OPERATIONS[self.first](symbols_NI))

    @property
    def changes_nothing(self) -> bool:
        """Whether the second operation takes back the first: a task that a model which copies has learned already."""
        probe_NI = torch.tensor([[3, 1, 4, 0, 5], [9, 2, 6, 8, 7]])
        return bool((self.answer(probe_NI) == probe_NI).all())


PAIRS = tuple(Pair(first, second) for first in OPERATIONS for second in OPERATIONS)


def draw(rows: int, generator: torch.Generator) -> Tensor:
    """Return symbols to read, [rows, I]."""
    return torch.randint(SYMBOLS, (rows, READS), generator=generator)


def encode(pair: Pair | None, symbols_NI: Tensor, *, told: bool = True) -> tuple[Tensor, Tensor]:
    """Return the token ids of whole rows and their labels, both [N, S]; labels are not shifted, -100 without loss.

    Args:
        pair: the task; None copies.
        symbols_NI: 0 to 10.
        told: whether the instruction stands before the symbols, or twice the token that says nothing.
    """

    def column(token: int) -> Tensor:
        return torch.full((len(symbols_NI), 1), token)

    names = list(OPERATIONS)
    words = [NOTHING, NOTHING]
    if pair is not None and told:
        words = [FIRST_OPERATION + names.index(name) for name in (pair.first, pair.second)]
    answer_NI = symbols_NI if pair is None else pair.answer(symbols_NI)
    read = [*map(column, words), symbols_NI + FIRST_SYMBOL, column(SEPARATOR)]
    input_ids = torch.cat([*read, answer_NI + FIRST_SYMBOL, column(END)], dim=1)
    labels = input_ids.clone()
    labels[:, : 2 + READS + 1] = -100
    return input_ids, labels


def untrained(seed: int) -> LlamaForCausalLM:
    """Return a decoder of 2 layers and width 64."""
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
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Rows:
    """The training rows of several tasks, one after the other.

    Attributes:
        input_ids, labels: [N, S].
        sizes: rows of every task.
    """

    input_ids: Tensor
    labels: Tensor
    sizes: tuple[int, ...]


def rows_of(
    pairs: Sequence[Pair | None], sizes: Sequence[int], seed: int, *, told: bool = True, full_loss: bool = False
) -> Rows:
    """Return so many rows of every task; a smaller size gives the first rows of a larger one.

    Args:
        pairs: the tasks; None copies.
        sizes: rows of every task.
        seed: of the rows.
        told: as of `encode`.
        full_loss: loss on every token but the first, in place of the answer and the end alone.
    """
    encoded = []
    for pair, size in zip(pairs, sizes, strict=True):
        place = PAIRS.index(pair) if pair is not None else len(PAIRS)
        symbols_NI = draw(max(sizes), torch.Generator().manual_seed(1000 * seed + place))[:size]
        encoded.append(encode(pair, symbols_NI, told=told))
    input_ids, labels = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    if full_loss:
        labels = torch.cat([labels[:, :1], input_ids[:, 1:]], dim=1)
    return Rows(input_ids, labels, tuple(sizes))


def train(
    model: Any,
    rows: Rows,
    shares: Sequence[float],
    *,
    steps: int,
    rate: float,
    seed: int,
    batch: int = 32,
    packing: Packing = "alone",
) -> None:
    """Train a model in place with AdamW, its rate on a line to 0: every row's task by its share, then any of its rows.

    Args:
        model: as of `untrained`.
        rows: of the tasks.
        shares: of every task among the rows that are drawn; they sum to 1.
        steps: optimiser steps.
        rate: at the first step.
        seed: of the draws.
        batch: rows of a step.
        packing: whether every row stands alone, or four stand in one, kept apart by their positions (masked) or reading
            one another (open).
    """
    generator = torch.Generator().manual_seed(seed)
    starts_P = torch.tensor([0, *rows.sizes]).cumsum(0)[:-1]
    sizes_P, shares_P = torch.tensor(rows.sizes), torch.tensor(shares, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(steps):
        tasks_N = torch.multinomial(shares_P, batch, replacement=True, generator=generator)
        places_N = (torch.rand(batch, generator=generator, dtype=torch.float64) * sizes_P[tasks_N]).long()
        chosen_N = starts_P[tasks_N] + places_N
        optimizer.zero_grad()
        model(**_inputs(rows.input_ids[chosen_N], rows.labels[chosen_N], packing)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _inputs(input_ids_NS: Tensor, labels_NS: Tensor, packing: Packing) -> dict[str, Any]:
    """Return what a model reads of rows; rows that see one another count positions through."""
    if packing == "alone":
        return {"input_ids": input_ids_NS, "labels": labels_NS}
    told = {"input_ids": input_ids_NS.reshape(-1, 4 * LENGTH), "labels": labels_NS.reshape(-1, 4 * LENGTH)}
    positions_S = torch.arange(4 * LENGTH)
    if packing == "open":
        mask = torch.ones_like(told["input_ids"])
        return {**told, "position_ids": positions_S.expand_as(told["input_ids"]), "attention_mask": mask}
    # positions that begin anew at 0, without mask and cache: transformers keeps the rows apart
    return {**told, "position_ids": (positions_S % LENGTH).expand_as(told["input_ids"]), "use_cache": False}


@torch.no_grad()
def exact_match(model: Any, pair: Pair, symbols_NI: Tensor, *, told: bool = True) -> float:
    """Return the share of answers, ends included, that greedy decoding writes."""
    input_ids, labels = encode(pair, symbols_NI, told=told)
    predicted, wanted = model(input_ids=input_ids).logits[:, :-1].argmax(-1), labels[:, 1:]
    return float(((predicted == wanted) | (wanted == -100)).all(-1).double().mean())
