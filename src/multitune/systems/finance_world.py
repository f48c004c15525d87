"""Headlines of an invented language, seven tasks over them, and a tiny decoder that has read some: what is mixed.

400 words have a hidden polarity, 20 say up or down, amounts are digits. A row is a word for the task, what is read, the
separator, the answer, the end. 250 rows of a task do not show every word: who learns another task of the same lexicon
sees more of it.

Shape legend: ``N`` rows, ``S`` tokens of the longest row, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

WORDS, DIRECTIONS = 400, 20
TASKS = {
    "A": "sentiment of a headline, in three classes",
    "B": "whether a headline is positive",
    "C": "which of two headlines is better",
    "D": "whether the price goes up or down",
    "E": "the sum of two amounts, a digit each, in a headline",
    "G": "a headline copied",
    "M": "the sum of two digits",
    "S": "B with answers at random: nothing to learn",
}
ANSWERS = ("negative", "neutral", "positive", "no", "yes", "first", "second", "down", "up")

PADDING, END, SEPARATOR = 0, 1, 2
FIRST_TASK = 3
FIRST_ANSWER = FIRST_TASK + len(TASKS)
FIRST_DIGIT = FIRST_ANSWER + len(ANSWERS)
FIRST_WORD = FIRST_DIGIT + 10
FIRST_DIRECTION = FIRST_WORD + WORDS
VOCABULARY = FIRST_DIRECTION + DIRECTIONS

Row = tuple[list[int], list[int]]
"""What is read, and the answer, without the tokens around them."""


@dataclass(frozen=True)
class Lexicon:
    """What the words of one world mean.

    Attributes:
        polarity: -1, 0 or 1 of every word.
        direction: -1 or 1 of every direction word.
    """

    polarity: tuple[int, ...]
    direction: tuple[int, ...]


def lexicon(seed: int) -> Lexicon:
    """Return a world's lexicon: three like shares of polarities, two of directions."""
    draw = Random(f"lexicon/{seed}")
    polarity = [number % 3 - 1 for number in range(WORDS)]
    direction = [2 * (number % 2) - 1 for number in range(DIRECTIONS)]
    draw.shuffle(polarity)
    draw.shuffle(direction)
    return Lexicon(tuple(polarity), tuple(direction))


def headline(words: Lexicon, draw: Random) -> tuple[list[int], int]:
    """Return 8 to 12 words, more than half of them of one tone, and the sign of the sum of their polarities.

    A sum of -1, 0 or 1 is neutral.
    """
    tone = draw.choice((-1, 0, 1))
    alike = [word for word, polarity in enumerate(words.polarity) if polarity == tone]
    chosen = [draw.choice(alike) if draw.random() < 0.6 else draw.randrange(WORDS) for _ in range(draw.randint(8, 12))]
    total = sum(words.polarity[word] for word in chosen)
    return [FIRST_WORD + word for word in chosen], (total > 1) - (total < -1)


def _answer(name: str) -> list[int]:
    return [FIRST_ANSWER + ANSWERS.index(name)]


def _digits(number: int) -> list[int]:
    return [FIRST_DIGIT + int(digit) for digit in str(number)]


def _sentiment(words: Lexicon, draw: Random) -> Row:
    read, sign = headline(words, draw)
    return read, _answer(("neutral", "positive", "negative")[sign])


def _positive(words: Lexicon, draw: Random) -> Row:
    read, sign = headline(words, draw)
    return read, _answer("yes" if sign > 0 else "no")


def _better(words: Lexicon, draw: Random) -> Row:
    while True:
        (one, first), (other, second) = headline(words, draw), headline(words, draw)
        if first != second:
            return [*one, SEPARATOR, *other], _answer("first" if first > second else "second")


def _price(words: Lexicon, draw: Random) -> Row:
    read, _ = headline(words, draw)
    word = draw.randrange(DIRECTIONS)
    read.insert(draw.randint(0, len(read)), FIRST_DIRECTION + word)
    return read, _answer("up" if words.direction[word] > 0 else "down")


def _amounts(words: Lexicon, draw: Random) -> Row:
    read, _ = headline(words, draw)
    one, other, cut = draw.randrange(10), draw.randrange(10), draw.randint(1, len(read) - 1)
    return [*read[:cut], *_digits(one), *read[cut:], *_digits(other)], _digits(one + other)


def _copied(words: Lexicon, draw: Random) -> Row:
    read, _ = headline(words, draw)
    return read, list(read)


def _sum(words: Lexicon, draw: Random) -> Row:
    one, other = draw.randrange(10), draw.randrange(10)
    return [*_digits(one), SEPARATOR, *_digits(other)], _digits(one + other)


def _at_random(words: Lexicon, draw: Random) -> Row:
    read, _ = headline(words, draw)
    return read, _answer(draw.choice(("yes", "no")))


_MAKE: Mapping[str, Callable[[Lexicon, Random], Row]] = {
    "A": _sentiment, "B": _positive, "C": _better, "D": _price, "E": _amounts, "G": _copied, "M": _sum,
    "S": _at_random,
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Whole rows as a model reads them.

    Attributes:
        ids: [N, S], padded behind.
        labels: [N, S], not shifted, -100 without loss.
    """

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def rows_of(task: str, count: int, seed: int, split: str) -> Rows:
    """Return rows of a task in a seed's world; of two splits different ones."""
    words, draw = lexicon(seed), Random(f"{split}/{task}/{seed}")
    return padded([_whole(task, *_MAKE[task](words, draw)) for _ in range(count)])


def headlines(count: int, seed: int, split: str) -> Rows:
    """Return headlines with loss on every token: what the base has read, and what it may forget."""
    words, draw = lexicon(seed), Random(f"{split}/headlines/{seed}")
    read = [headline(words, draw)[0] for _ in range(count)]
    return padded([([SEPARATOR, *one, END], [-100, *one, END]) for one in read])


def _whole(task: str, read: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    before = [FIRST_TASK + list(TASKS).index(task), *read, SEPARATOR]
    return [*before, *answer, END], [-100] * len(before) + [*answer, END]


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> Rows:
    """Return rows of token ids and labels as tensors."""
    length = max(len(ids) for ids, _ in rows)
    ids_NS = torch.tensor([ids + [PADDING] * (length - len(ids)) for ids, _ in rows])
    labels_NS = torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows])
    return Rows(ids_NS, labels_NS)


def mixed(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several tasks, one after the other, padded alike."""
    length = max(part.ids.shape[1] for part in parts)

    def wide(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (0, length - tensor.shape[1]), value=value)

    return Rows(
        torch.cat([wide(part.ids, PADDING) for part in parts]), torch.cat([wide(part.labels, -100) for part in parts])
    )


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


def train(model: Any, rows: Rows, *, steps: int, rate: float, seed: int, batch: int = 32) -> None:
    """Train a model in place on shuffled rows, pass after pass, with AdamW, its rate on a line to 0."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    places = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(places) < batch:
            places = torch.cat([places, torch.randperm(len(rows), generator=generator)])
        now, places = places[:batch], places[batch:]
        optimizer.zero_grad()
        model(input_ids=rows.ids[now], labels=rows.labels[now]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def exact_match(model: Any, rows: Rows) -> float:
    """Return the share of answers, ends included, that greedy decoding writes."""
    right = [
        ((model(input_ids=ids).logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == -100)).all(-1)
        for ids, labels in zip(rows.ids.split(250), rows.labels.split(250), strict=True)
    ]
    return float(torch.cat(right).double().mean())


@torch.no_grad()
def nats(model: Any, rows: Rows) -> float:
    """Return the mean negative log-likelihood of labelled tokens, in nats."""
    return float(model(input_ids=rows.ids, labels=rows.labels).loss)
