"""The generated tasks of Brown et al. 2020 (arXiv:2005.14165, section 3.9): arithmetic and scrambled words.

Written as the released files are: a question "Q: What is 98 plus 45?" and a blank line before "A:", a scrambled word
before " =". ``prompt`` leaves away the line breaks that begin every released context, because they part it from the
demonstration before it; ``context`` and ``completion`` hold the released strings. Every answer is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal

from multitune.errors import MultituneError, nearest
from multitune.tasks.synthetic import is_test_input
from multitune.tasks.synthetic.words import ALL_NOUNS

Paren = Literal["first", "last"]
Question = tuple[str, int]
"""An expression in words, and its value."""

WORDS_OF = {"+": "plus", "-": "minus", "*": "times"}
INSERTED = " ./!"
ARITHMETIC_ROWS, WORD_ROWS = 2000, 10_000
TRIES = 2000


def evaluate(a: int, operator: str, b: int) -> int:
    """Return a plus, minus or times b."""
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def two_operands(digits: int, operator: str) -> Callable[[Random, Paren], Question]:
    """Return the draw of two numbers, each uniform on 0..10^digits - 1, so that a tenth of them has fewer digits."""

    def draw(rng: Random, paren: Paren) -> Question:
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        return f"{a} {WORDS_OF[operator]} {b}", evaluate(a, operator, b)

    return draw


def one_digit_composite(rng: Random, paren: Paren) -> Question:
    """Three digits of 1 to 9 with two operations of +, - and *; the parentheses stand around two of them.

    The paper says the last two; the released file has the first two.
    """
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    first, second = rng.choice("+-*"), rng.choice("+-*")
    if paren == "first":
        return f"({a} {first} {b}) {second} {c}", evaluate(evaluate(a, first, b), second, c)
    return f"{a} {first} ({b} {second} {c})", evaluate(a, first, evaluate(b, second, c))


def digit_sum(rng: Random, paren: Paren) -> Question:
    """The sum of the digits of a number of 0..9999."""
    number = rng.randrange(10_000)
    return f"the sum of the digits of the number {number}", sum(map(int, str(number)))


ARITHMETIC: dict[str, Callable[[Random, Paren], Question]] = {
    **{f"{digits}D{operator}": two_operands(digits, operator) for digits in (2, 3, 4, 5, 6) for operator in "+-"},
    "2Dx": two_operands(2, "*"),
    "1DC": one_digit_composite,
    "digit_sum": digit_sum,
}


def cycle_letters(word: str, rng: Random) -> str:
    """The word rotated by 1 to len - 1 letters."""
    k = rng.randint(1, len(word) - 1)
    return word[k:] + word[:k]


def anagram_1(word: str, rng: Random) -> str | None:
    """All but the first and the last letter shuffled, never the word itself; None where no other order exists."""
    if len(set(word[1:-1])) == 1:
        return None
    while (scrambled := _shuffled_inside(word, 1, rng)) == word:
        continue
    return scrambled


def anagram_2(word: str, rng: Random) -> str:
    """All but the first two and the last two letters shuffled; now and then that is the word itself, as released."""
    return _shuffled_inside(word, 2, rng)


def random_insertion(word: str, rng: Random) -> str:
    """One of " ", ".", "/" and "!" between every two letters."""
    return word[0] + "".join(rng.choice(INSERTED) + letter for letter in word[1:])


def reversed_word(word: str, rng: Random) -> str:
    """The letters from last to first."""
    return word[::-1]


SCRAMBLES: dict[str, Callable[[str, Random], str | None]] = {
    "cycle": cycle_letters,
    "A1": anagram_1,
    "A2": anagram_2,
    "insertion": random_insertion,
    "reversed": reversed_word,
}


def generate(
    task: str,
    rows: int | None = None,
    seed: int = 0,
    split: Literal["all", "train", "test"] = "all",
    paren: Paren = "first",
    words: str | None = None,
    folder: Path = Path(),
) -> Iterator[dict[str, Any]]:
    """Yield different items of a task: id, prompt, completion, context (both as released) and instruction.

    Train and test never share a question: which one it belongs to is decided by its digest.

    Args:
        task: a key of ARITHMETIC or SCRAMBLES.
        rows: how many; 2,000 of arithmetic and 10,000 of words unless given.
        seed: the items depend on task, seed, split and the words, on nothing else.
        split: all, train (nine questions of ten) or test.
        paren: 1DC: which two numbers the parentheses hold.
        words: file of words, the most frequent first, one a line; None: the package's own nouns, a few hundred.
        folder: what ``words`` is relative to.

    Raises:
        MultituneError: an unknown task, split or place of the parentheses, a file that cannot be read, or more rows
            than there are different questions.
    """
    where = f"gpt3:{task}"
    known = [*ARITHMETIC, *SCRAMBLES]
    for given, allowed in ((task, known), (split, ["all", "train", "test"]), (paren, ["first", "last"])):
        if given not in allowed:
            raise MultituneError(
                f"There is no '{given}' here.{nearest(given, allowed)}", where, f"Use one of: {', '.join(allowed)}."
            )
    rng = Random(f"gpt3/{task}/{seed}/{split}")
    if task in ARITHMETIC:
        wanted = ARITHMETIC_ROWS if rows is None else rows
        found: Iterator[dict[str, str]] = (_arithmetic(*ARITHMETIC[task](rng, paren)) for _ in count())
    else:
        wanted = WORD_ROWS if rows is None else rows
        found = _scrambled(task, rng, _vocabulary(words, folder, 5 if task == "A1" else 6, where))
    seen: set[str] = set()
    tries = 0
    while len(seen) < wanted:
        item = next(found)
        tries += 1
        if item["prompt"] in seen or (split != "all" and is_test_input(item["prompt"]) != (split == "test")):
            if tries > TRIES:
                raise MultituneError(
                    f"There are fewer than {wanted:,} different questions of {task} in the split '{split}'.",
                    where,
                    "Ask for fewer rows" + (", or give a longer list of words." if task in SCRAMBLES else "."),
                )
            continue
        tries = 0
        seen.add(item["prompt"])
        digest = hashlib.blake2b(item["prompt"].encode(), digest_size=6).hexdigest()
        yield {"id": f"{task}:{digest}", **item}


def _arithmetic(expression: str, value: int) -> dict[str, str]:
    # the released files ask for "(3 + 5) * 2" in signs and for "98 plus 45" in words
    context = f"\n\nQ: What is {expression}?\n\nA:"
    return _item(context, str(value), "Work out the value.")


def _scrambled(task: str, rng: Random, vocabulary: list[str]) -> Iterator[dict[str, str]]:
    """Yield items without end: all words in random order, then all of them again."""
    while True:
        for word in rng.sample(vocabulary, len(vocabulary)):
            scrambled = SCRAMBLES[task](word, rng)
            if scrambled is not None:
                yield _item(f"\n{scrambled} =", word, "Please unscramble the letters into a word, and write that word:")


def _item(context: str, answer: str, instruction: str) -> dict[str, str]:
    return {
        "prompt": context.lstrip("\n"), "completion": f" {answer}", "context": context, "instruction": instruction,
    }  # fmt: skip


def _vocabulary(file: str | None, folder: Path, shortest: int, where: str) -> list[str]:
    """Return the words of 6 (A1: 5) to 15 letters, each once, in their order."""
    lines = list(ALL_NOUNS)
    if file is not None:
        try:
            lines = (folder / Path(file).expanduser()).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise MultituneError(
                f"The list of words cannot be read: {error}", where, "Give words a text file with one word a line."
            ) from error
    fitting = [word for word in dict.fromkeys(lines) if word.isalpha() and shortest <= len(word) <= 15]
    if not fitting:
        raise MultituneError(f"The list holds no word of {shortest} to 15 letters.", where, "Give words a longer list.")
    return fitting


def _shuffled_inside(word: str, kept: int, rng: Random) -> str:
    inside = list(word[kept:-kept])
    rng.shuffle(inside)
    return word[:kept] + "".join(inside) + word[-kept:]
