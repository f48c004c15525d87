"""Skills about order: copying, reversing, sorting, counting, picking items."""

from __future__ import annotations

from random import Random

from multitune.tasks.synthetic import words
from multitune.tasks.synthetic.arithmetic import Row


def random_letters(rng: Random, low: int, high: int) -> list[str]:
    """Between `low` and `high` letters, repeats allowed."""
    return [rng.choice(words.LETTERS) for _ in range(rng.randint(low, high))]


def random_words(rng: Random, low: int, high: int) -> list[str]:
    """Between `low` and `high` different nouns."""
    return rng.sample(words.ALL_NOUNS, rng.randint(low, high))


def copy_words(rng: Random) -> Row:
    """The input again, word by word."""
    text = " ".join(random_words(rng, 2, 8))
    return {"instruction": rng.choice(("Copy the words.", "Repeat the input.")), "input": text, "target": text}


def copy_letters(rng: Random) -> Row:
    """The input again, letter by letter."""
    text = " ".join(random_letters(rng, 4, 12))
    return {"instruction": rng.choice(("Copy the letters.", "Repeat the input.")), "input": text, "target": text}


def reverse_letters(rng: Random) -> Row:
    """Letters from last to first."""
    letters = random_letters(rng, 3, 8) if rng.random() < 0.5 else list(rng.choice(words.ALL_NOUNS + words.NAMES))
    return {
        "instruction": rng.choice(("Reverse the letters.", "Write the letters backwards.")),
        "input": " ".join(letters),
        "target": " ".join(reversed(letters)),
    }


def reverse_words(rng: Random) -> Row:
    """Words from last to first."""
    items = random_words(rng, 2, 6)
    return {
        "instruction": rng.choice(("Reverse the words.", "Write the words in reverse order.")),
        "input": " ".join(items),
        "target": " ".join(reversed(items)),
    }


def sort_words(rng: Random) -> Row:
    """Three to five words in the order of the alphabet."""
    items = random_words(rng, 3, 5)
    return {
        "instruction": rng.choice(("Sort the words.", "Put the words in the order of the alphabet.")),
        "input": " ".join(items),
        "target": " ".join(sorted(items)),
    }


def spell_words(rng: Random) -> Row:
    """A word or two, spelled letter by letter."""
    items = rng.sample(words.ALL_NOUNS + words.NAMES, rng.randint(1, 3))
    return {
        "instruction": rng.choice(("Spell the words.", "Write each letter by itself.")),
        "input": " ".join(items),
        "target": ", ".join(map(words.spaced, items)),
    }


def join_letters(rng: Random) -> Row:
    """The words that spelled letters make; the inverse of spelling."""
    items = rng.sample(words.ALL_NOUNS + words.NAMES, rng.randint(1, 3))
    return {
        "instruction": rng.choice(("Join the letters to words.", "Which words are spelled?")),
        "input": ", ".join(map(words.spaced, items)),
        "target": " ".join(items),
    }


def count_letter(rng: Random) -> Row:
    """How often a letter occurs among spaced letters."""
    letter = rng.choice(words.LETTERS)
    letters = [letter if rng.random() < 0.3 else rng.choice(words.LETTERS) for _ in range(rng.randint(3, 9))]
    return {
        "instruction": "Count the letter.",
        "input": f"how many {letter} in {' '.join(letters)}",
        "target": str(letters.count(letter)),
    }


def count_words(rng: Random) -> Row:
    """How many words the input has, one to nine."""
    items = random_words(rng, 1, 9)
    return {
        "instruction": rng.choice(("Count the words.", "How many words are there?")),
        "input": " ".join(items),
        "target": str(len(items)),
    }


def pick_item(rng: Random) -> Row:
    """The first, second, third or last item of a list."""
    items = random_words(rng, 3, 6)
    name, index = rng.choice((("first", 0), ("second", 1), ("third", 2), ("last", -1)))
    return {"instruction": "Pick the item.", "input": f"{name} of " + ", ".join(items), "target": items[index]}


def item_after(rng: Random) -> Row:
    """The item that follows a named one in a list."""
    items = random_words(rng, 3, 7)
    index = rng.randrange(len(items) - 1)
    return {
        "instruction": "Which item comes next in the list?",
        "input": f"after {items[index]}: " + " ".join(items),
        "target": items[index + 1],
    }


def day_after(rng: Random) -> Row:
    """The day after (or before) each of one to four days."""
    days = [rng.choice(words.DAYS) for _ in range(rng.randint(1, 4))]
    name, step = rng.choice((("after", 1), ("before", -1)))
    return {
        "instruction": f"Name the day {name} each day.",
        "input": f"day {name} " + " ".join(days),
        "target": " ".join(words.DAYS[(words.DAYS.index(day) + step) % 7] for day in days),
    }


def month_order(rng: Random) -> Row:
    """Which of two to four months comes first in the year, or the months in order."""
    months = rng.sample(words.MONTHS, rng.randint(2, 4))
    ordered = sorted(months, key=words.MONTHS.index)
    if rng.random() < 0.5:
        return {
            "instruction": "Which month comes first in the year?",
            "input": "earliest of " + " ".join(months),
            "target": ordered[0],
        }
    return {"instruction": "Sort the months.", "input": "in order " + " ".join(months), "target": " ".join(ordered)}
