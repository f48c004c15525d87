"""Skills that find an answer in the input, and episodes whose rule only the demonstrations tell."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from multitune.tasks.synthetic import words
from multitune.tasks.synthetic.arithmetic import Row
from multitune.tasks.synthetic.sequences import random_letters, random_words


def look_up(rng: Random) -> Row:
    """The value of one key among three to seven key-value pairs."""
    count = rng.randint(3, 7)
    keys = rng.sample(words.ALL_NOUNS + words.NONSENSE, count)
    values = [str(rng.randrange(100)) for _ in keys] if rng.random() < 0.5 else rng.sample(words.NAMES, count)
    i = rng.randrange(count)
    pairs = ", ".join(f"{key} = {value}" for key, value in zip(keys, values, strict=True))
    return {
        "instruction": rng.choice(("Look up the value.", "Find the value of the key.")),
        "input": f"{pairs}; {keys[i]}",
        "target": values[i],
    }


def look_up_key(rng: Random) -> Row:
    """The key that has a value among three to six pairs."""
    count = rng.randint(3, 6)
    people = rng.sample(words.NAMES, count)
    things = rng.sample(words.ALL_NOUNS, count)
    i = rng.randrange(count)
    pairs = ", ".join(f"{person} has {thing}" for person, thing in zip(people, things, strict=True))
    return {
        "instruction": rng.choice(("Who has it?", "Find the owner.")),
        "input": f"{pairs}; {things[i]}",
        "target": people[i],
    }


def translate_code(rng: Random) -> Row:
    """Words of a toy language, translated with the dictionary that stands in the input."""
    count = rng.randint(3, 5)
    code, plain = rng.sample(words.NONSENSE, count), random_words(rng, count, count)
    asked = [rng.randrange(count) for _ in range(rng.randint(1, 3))]
    dictionary = ", ".join(f"{c} means {p}" for c, p in zip(code, plain, strict=True))
    return {
        "instruction": rng.choice(("Translate with the dictionary.", "Translate the last words.")),
        "input": f"{dictionary}; {' '.join(code[i] for i in asked)}",
        "target": " ".join(plain[i] for i in asked),
    }


def cipher_episode(rng: Random, shots: int) -> list[Row]:
    """Rows that share one secret word-for-word code; every word of a later row has been seen before.

    The first rows show one or two code words each; only demonstrations tell what they mean.
    """
    size = rng.randint(3, 5)
    code, plain = rng.sample(words.NONSENSE, size), random_words(rng, size, size)
    if rng.random() < 0.5:
        code, plain = plain, code
    rows: list[Row] = []
    for shot in range(shots):
        picks = [shot] if shot < size else [rng.randrange(size) for _ in range(rng.randint(1, 3))]
        rows.append({"input": " ".join(code[i] for i in picks), "target": " ".join(plain[i] for i in picks)})
    return rows


def label_episode(rng: Random, shots: int) -> list[Row]:
    """Rows that give two or three categories of words arbitrary label words, the same in the whole episode."""
    kinds = rng.sample(tuple(words.CATEGORIES), rng.randint(2, 3))
    labels = rng.sample(words.NONSENSE, len(kinds))
    rows: list[Row] = []
    for _ in range(shots):
        i = rng.randrange(len(kinds))
        items = rng.sample(words.CATEGORIES[kinds[i]], rng.randint(1, 2))
        rows.append({"input": " ".join(items), "target": labels[i], "choices": labels})
    return rows


def offset_episode(rng: Random, shots: int) -> list[Row]:
    """Rows that all add (or take away) one secret number."""
    offset = rng.choice([-3, -2, -1, 1, 2, 3, 4, 5, 10, 20])
    return [{"input": str(x), "target": str(x + offset)} for x in (rng.randrange(10, 90) for _ in range(shots))]


_RULES: tuple[Callable[[list[str]], list[str]], ...] = (
    lambda items: items[:1],
    lambda items: items[-1:],
    lambda items: items[1:2],
    lambda items: items[1:],
    lambda items: items[:-1],
    lambda items: items[::-1],
    lambda items: items,
    lambda items: sorted(items),
    lambda items: [*items, items[0]],
    lambda items: [items[-1], *items],
    lambda items: items[:2],
    lambda items: items[-2:],
)


def rule_episode(rng: Random, shots: int) -> list[Row]:
    """Rows of short lists that one unnamed rule turns into other lists (first, tail, reversed, sorted...)."""
    rule = rng.choice(_RULES)
    letters = rng.random() < 0.3
    mark = rng.choice(words.NONSENSE) if rng.random() < 0.25 else None
    rows: list[Row] = []
    for _ in range(shots):
        items = random_letters(rng, 3, 6) if letters else random_words(rng, 3, 5)
        result = rule(items)
        rows.append({"input": " ".join(items), "target": " ".join([*result, mark] if mark else result)})
    return rows


def recall_episode(rng: Random, shots: int) -> list[Row]:
    """Rows of arbitrary pairs, where later rows ask again for pairs already shown."""
    size = max(2, min(6, shots // 2))
    keys = rng.sample(words.ALL_NOUNS + words.NAMES, size)
    values = rng.sample(words.ALL_NOUNS + words.NONSENSE, size)
    order = [i if i < size else rng.randrange(size) for i in range(shots)]
    return [{"input": keys[i], "target": values[i]} for i in order]
