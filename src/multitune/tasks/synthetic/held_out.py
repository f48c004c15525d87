"""Skills that pretraining never sees: the tasks that the quick start adapts to, and its held-out tasks."""

from __future__ import annotations

from random import Random

from multitune.tasks.synthetic import words
from multitune.tasks.synthetic.arithmetic import Row
from multitune.tasks.synthetic.language import YES_NO
from multitune.tasks.synthetic.sequences import random_letters, random_words


def swap_ends(rng: Random) -> Row:
    """A list with its first and last item exchanged."""
    first, *middle, last = random_words(rng, 3, 6)
    return {
        "instruction": "Swap the first and the last word.",
        "input": " ".join([first, *middle, last]),
        "target": " ".join([last, *middle, first]),
    }


def rotate_left(rng: Random) -> Row:
    """A list whose first item has moved to the end."""
    first, *rest = random_words(rng, 3, 6)
    return {
        "instruction": "Move the first word to the end.",
        "input": " ".join([first, *rest]),
        "target": " ".join([*rest, first]),
    }


def double_each(rng: Random) -> Row:
    """A list with every item written twice."""
    items = random_words(rng, 2, 4)
    return {
        "instruction": "Write every word twice.",
        "input": " ".join(items),
        "target": " ".join(f"{item} {item}" for item in items),
    }


def interleave(rng: Random) -> Row:
    """Two lists of equal length, taken in turns."""
    count = rng.randint(2, 4)
    left, right = random_words(rng, count, count), random_words(rng, count, count)
    return {
        "instruction": "Take words from both lists in turns.",
        "input": f"{' '.join(left)} / {' '.join(right)}",
        "target": " ".join(f"{a} {b}" for a, b in zip(left, right, strict=True)),
    }


def remove_vowels(rng: Random) -> Row:
    """Spaced letters without a, e, i, o and u; at least one letter is left."""
    letters = [
        rng.choice(words.VOWELS) if rng.random() < 0.3 else rng.choice(words.LETTERS) for _ in range(rng.randint(3, 7))
    ]
    letters.append(rng.choice("bcdfghklmnprst"))
    return {
        "instruction": "Leave out the vowels.",
        "input": " ".join(letters),
        "target": " ".join(letter for letter in letters if letter not in words.VOWELS),
    }


def letter_positions(rng: Random) -> Row:
    """The place in the alphabet of one to four letters; a is 1."""
    letters = random_letters(rng, 1, 4)
    return {
        "instruction": "Give the position of each letter in the alphabet.",
        "input": " ".join(letters),
        "target": " ".join(str(words.LETTERS.index(letter) + 1) for letter in letters),
    }


def days_later(rng: Random) -> Row:
    """The day three days after each of one to five days."""
    days = [rng.choice(words.DAYS) for _ in range(rng.randint(1, 5))]
    return {
        "instruction": "Which day is it three days later?",
        "input": " ".join(days),
        "target": " ".join(words.DAYS[(words.DAYS.index(day) + 3) % 7] for day in days),
    }


def initials(rng: Random) -> Row:
    """The first letter of each of two to five words."""
    items = random_words(rng, 2, 5)
    return {
        "instruction": "Write the first letter of each word.",
        "input": " ".join(items),
        "target": " ".join(item[0] for item in items),
    }


def same_ends(rng: Random) -> Row:
    """Whether the first and the last word of a list are the same, yes or no."""
    items = random_words(rng, 3, 6)
    if rng.random() < 0.5:
        items[-1] = items[0]
    return {
        "instruction": "Are the first and the last word the same?",
        "input": " ".join(items),
        "target": "yes" if items[0] == items[-1] else "no",
        "choices": YES_NO,
    }


def longest_list(rng: Random) -> Row:
    """Which of two lists, a or b, has more items."""
    long, short = rng.randint(3, 6), 0
    short = rng.randint(1, long - 1)
    longer, shorter = random_words(rng, long, long), random_words(rng, short, short)
    a_is_longer = rng.random() < 0.5
    a, b = (longer, shorter) if a_is_longer else (shorter, longer)
    return {
        "instruction": "Which list is longer?",
        "input": f"a: {' '.join(a)} / b: {' '.join(b)}",
        "target": "a" if a_is_longer else "b",
        "choices": ["a", "b"],
    }


_REPLIES = {
    "angry": (
        "i am still waiting for my {thing}, this must stop",
        "nobody answers the {name} desk and i am furious",
        "give me back the money for the {thing} now",
    ),
    "thankful": (
        "many thanks to {name} for the {thing}",
        "you saved my day with the {thing}, bless you",
        "{name} was so kind, i owe you one",
    ),
    "asking": (
        "how do i change the {colour} {thing}",
        "can {name} tell me when the {thing} arrives",
        "do you also have the {thing} in {colour}",
    ),
}


def message_intent(rng: Random) -> Row:
    """What a customer's message is: angry, thankful or asking."""
    intent = rng.choice(tuple(_REPLIES))
    text = rng.choice(_REPLIES[intent]).format(
        name=rng.choice(words.NAMES),
        thing=rng.choice(words.COUNTABLE),
        colour=rng.choice(words.CATEGORIES["colour"]),
    )
    greeting = rng.choice(("", "hello, ", "good morning, ", "dear all, ", "sorry, "))
    return {
        "instruction": "What is the message: angry, thankful or asking?",
        "input": greeting + text,
        "target": intent,
        "choices": list(_REPLIES),
    }
