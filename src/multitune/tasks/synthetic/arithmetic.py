"""Skills about numbers: sums, differences, comparison, parity, word problems."""

from __future__ import annotations

from random import Random

from multitune.tasks.synthetic import words

Row = dict[str, str | list[str]]


def _number(rng: Random, digits: int) -> int:
    length = rng.randint(1, digits)
    return rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)


def add(rng: Random) -> Row:
    """The sum of two numbers of at most three digits."""
    a, b = _number(rng, 3), _number(rng, 3)
    return {
        "instruction": rng.choice(("Add the numbers.", "What is the sum?")),
        "input": f"{a} + {b}",
        "target": str(a + b),
    }


def subtract(rng: Random) -> Row:
    """The difference of two numbers of at most three digits, never negative."""
    a, b = sorted((_number(rng, 3), _number(rng, 3)), reverse=True)
    return {
        "instruction": rng.choice(("Subtract.", "What is the difference?")),
        "input": f"{a} - {b}",
        "target": str(a - b),
    }


def add_with_steps(rng: Random) -> Row:
    """A sum worked column by column from the right, with carries, then the answer."""
    a, b = rng.randrange(10, 1000), rng.randrange(10, 1000)
    steps, carry, x, y = [], 0, a, b
    while x or y:
        total = x % 10 + y % 10 + carry
        steps.append(f"{x % 10} + {y % 10} + {carry} = {total}")
        carry, x, y = total // 10, x // 10, y // 10
    instruction = rng.choice(("Add step by step.", "Work out the sum, column by column."))
    return {"instruction": instruction, "input": f"{a} + {b}", "target": "; ".join(steps) + f"; answer {a + b}"}


def add_chain(rng: Random) -> Row:
    """A sum of three or four one-digit numbers, one running total after another."""
    numbers = [rng.randrange(10) for _ in range(rng.randint(3, 4))]
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total} + {number} = {total + number}")
        total += number
    return {
        "instruction": rng.choice(("Add from left to right and show each step.", "Keep a running sum.")),
        "input": " + ".join(map(str, numbers)),
        "target": "; ".join(steps),
    }


def compare_numbers(rng: Random) -> Row:
    """Which of two numbers is larger (or smaller)."""
    a = _number(rng, 3)
    b = rng.choice([a + rng.randint(1, 9), _number(rng, 3)])
    if a == b:
        b += 1
    if rng.random() < 0.5:
        a, b = b, a
    largest = rng.random() < 0.5
    return {
        "instruction": "Compare the numbers.",
        "input": f"which is {'larger' if largest else 'smaller'}, {a} or {b}",
        "target": str(max(a, b) if largest else min(a, b)),
        "choices": [str(a), str(b)],
    }


def extreme_number(rng: Random) -> Row:
    """The largest or smallest of three to six numbers."""
    numbers = rng.sample(range(100), rng.randint(3, 6))
    name, pick = rng.choice((("largest", max), ("smallest", min)))
    return {
        "instruction": f"Find the {name} number.",
        "input": f"{name}: " + ", ".join(map(str, numbers)),
        "target": str(pick(numbers)),
    }


def parity(rng: Random) -> Row:
    """Whether a number is even or odd."""
    number = _number(rng, 4)
    return {
        "instruction": rng.choice(("Is the number even or odd?", "Say even or odd.")),
        "input": str(number),
        "target": "odd" if number % 2 else "even",
        "choices": ["even", "odd"],
    }


def sort_numbers(rng: Random) -> Row:
    """Three to six numbers below 100 in rising order."""
    numbers = rng.sample(range(100), rng.randint(3, 6))
    return {
        "instruction": rng.choice(("Sort the numbers.", "Put the numbers in order.")),
        "input": " ".join(map(str, numbers)),
        "target": " ".join(map(str, sorted(numbers))),
    }


def continue_sequence(rng: Random) -> Row:
    """The next two numbers of a sequence with a constant step."""
    step = rng.choice([-5, -3, -2, -1, 1, 2, 3, 4, 5, 10])
    start = rng.randrange(50, 1000) if step < 0 else rng.randrange(900)
    numbers = [start + step * i for i in range(6)]
    return {
        "instruction": rng.choice(("Continue the sequence.", "Which two numbers come next?")),
        "input": " ".join(map(str, numbers[:4])),
        "target": " ".join(map(str, numbers[4:])),
    }


def word_problem(rng: Random) -> Row:
    """A story of one gain or loss about things a person owns, with the sum written out."""
    name, other = rng.sample(words.NAMES, 2)
    thing = words.plural(rng.choice(words.COUNTABLE))
    a, b = rng.randint(10, 60), rng.randint(2, 39)
    if rng.random() < 0.5:
        event = rng.choice(
            (f"{other} gives {name} {b} more.", f"then {name} buys {b} more.", f"{name} finds {b} more.")
        )
        result = f"{a} + {b} = {a + b}"
    else:
        b = min(b, a)
        event = rng.choice((f"{name} gives {b} to {other}.", f"then {name} loses {b}.", f"{name} sells {b}."))
        result = f"{a} - {b} = {a - b}"
    return {
        "instruction": rng.choice(("Solve the problem.", "Write the sum and its result.")),
        "input": f"{name} has {a} {thing}. {event} how many {thing} does {name} have?",
        "target": result,
    }
