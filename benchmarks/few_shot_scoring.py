"""Few-shot scoring with fixed demonstrations that are read once, against the same prompts read whole.

    python benchmarks/few_shot_scoring.py [--rounds 3] [--questions 64]

A random Llama of the embedded base's size (8 M parameters, 8192 words), 8 demonstrations of 30 to 44 tokens, questions
of 24 to 36. Both sides are this package's, and read the same numbers of tokens in the same budget of a batch:

    choices, shared      the demonstrations once, then every question, then its four choices
    choices, prompts     every prompt whole, then its four choices: each prompt's first token is its own
    choices, whole       every prompt and choice as one text
    8 tokens, shared     greedy generation after demonstrations that are read once
    8 tokens, prompts    the same after every prompt whole

One thread, process time, A B B A in every round. Shared and whole scores differ by less than 1e-3 nats, or it stops.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from choice_scoring import WORDS, random_backbone, seconds

from multitune.decoding.generate import generate
from multitune.scoring.choices import choice_log_probabilities, whole_text_log_probabilities

DEMONSTRATIONS = 8


def compare(name: str, questions: int, rounds: int, shared: Callable[[], object], other: Callable[[], object]) -> None:
    """Print examples per second of both sides and their ratio: the median and the range over rounds."""
    rows = [(seconds(shared), seconds(other), seconds(other), seconds(shared)) for _ in range(rounds)]
    fast = [(first + last) / 2 for first, _, _, last in rows]
    slow = [(second + third) / 2 for _, second, third, _ in rows]
    ratios = [b / a for a, b in zip(fast, slow, strict=True)]
    speeds = [questions / statistics.median(side) for side in (fast, slow)]
    print(
        f"{name:38} {speeds[0]:8.1f} {speeds[1]:8.1f} {statistics.median(ratios):6.2f}"
        f"   {min(ratios):.2f} to {max(ratios):.2f}",
        flush=True,
    )


def main() -> None:
    """Print examples per second of both sides and their ratio for every comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=64)
    words = parser.parse_args()
    questions, rounds = words.questions, words.rounds
    torch.set_num_threads(1)
    backbone = random_backbone()
    generator = np.random.default_rng(0)

    def text(least: int, most: int) -> list[int]:
        return generator.integers(3, WORDS, size=generator.integers(least, most + 1)).tolist()

    demonstrations = [token for _ in range(DEMONSTRATIONS) for token in text(30, 44)]
    asked = [demonstrations + text(24, 36) for _ in range(questions)]
    apart = [[3 + i, *prompt[1:]] for i, prompt in enumerate(asked)]
    print(f"{'comparison':38} {'shared/s':>8} {'other/s':>8} {'ratio':>6}   range over rounds")
    for kind, tokens in (("1 to 4 tokens", (1, 4)), ("1 token", (1, 1))):
        choices = [[text(*tokens) for _ in range(4)]] * questions
        found = choice_log_probabilities(backbone, asked, choices)
        expected = whole_text_log_probabilities(backbone, asked, choices)
        difference = max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True))
        assert difference < 1e-3, difference
        print(f"choices of {kind}: largest difference {difference:.1e} nats")

        def score(prompts: list[list[int]], choices: list[list[list[int]]] = choices) -> object:
            return choice_log_probabilities(backbone, prompts, choices)

        def whole(choices: list[list[list[int]]] = choices) -> object:
            return whole_text_log_probabilities(backbone, asked, choices)

        compare(f"{kind}: prompts whole", questions, rounds, lambda s=score: s(asked), lambda s=score: s(apart))
        compare(f"{kind}: prompt and choice whole", questions, rounds, lambda s=score: s(asked), whole)

    def write(prompts: list[list[int]]) -> object:
        return generate(backbone, prompts, max_new_tokens=8)

    compare("8 tokens written: prompts whole", questions, rounds, lambda: write(asked), lambda: write(apart))


if __name__ == "__main__":
    main()
