"""System 15, BLOOMZ and mT0: tasks in many languages under English prompts, and what carries over to languages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

MIXTURE: dict[str, Any] = {
    "world": "mixture", "before_steps": 300, "steps": 1000, "rate": 1e-3, "batch": 32, "test_rows": 300,
}  # fmt: skip
LENGTHS: dict[str, Any] = {"world": "lengths", "steps": 300, "rate": 1e-3, "batch": 32, "test_rows": 300}
SHORT = ("reverse", "sort", "add 1")


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Fine-tune on operations in one language or three, or on three short tasks beside a long one."""
    return _lengths(settings, seed) if settings["world"] == "lengths" else _mixture(settings, seed)


def _mixture(settings: Mapping[str, Any], seed: int) -> Metrics:
    """Return mean exact match: ``held_out`` (operation, language) pairs that no arm trains on, ``seen`` ones of the
    other languages, which the multilingual arm trains on, and ``english``."""
    import torch

    from multitune.systems.language_world import LANGUAGES, OPERATIONS, Cell, draw, exact_match, train, untrained

    model = untrained(seed)
    everywhere = range(LANGUAGES)
    translations = [Cell("", source, target) for source in everywhere for target in everywhere]
    learning = {name: settings[name] for name in ("rate", "batch")}
    train(model, translations, steps=settings["before_steps"], seed=seed, **learning)
    english = [Cell(task, 0) for task in OPERATIONS]
    held_out = [Cell(task, language) for task, language in held_out_languages(seed).items()]
    others = [Cell(task, language) for task in OPERATIONS for language in everywhere[1:]]
    seen = [cell for cell in others if cell not in held_out]
    trained = english + (seen if settings["multilingual"] else [])
    train(model, trained, steps=settings["steps"], seed=seed + 1, **learning)
    symbols_NI = draw(settings["test_rows"], torch.Generator().manual_seed(10_000 + seed))

    def mean(cells: list[Cell]) -> float:
        return math.fsum(exact_match(model, cell, symbols_NI) for cell in cells) / len(cells)

    return {"held_out": mean(held_out), "seen": mean(seen), "english": mean(english)}


def held_out_languages(seed: int) -> dict[str, int]:
    """Return the language, 1 to 3, in which every operation is never trained on."""
    from multitune.systems.language_world import LANGUAGES, OPERATIONS

    draw = Random(seed)
    return {task: draw.randrange(1, LANGUAGES) for task in OPERATIONS}


def _lengths(settings: Mapping[str, Any], seed: int) -> Metrics:
    """Return mean exact match of the ``short`` tasks, and of the ``long`` one."""
    import torch

    from multitune.systems.language_world import LONG, Cell, draw, exact_match, train, untrained

    model = untrained(seed)
    short, long = [Cell(task, 0) for task in SHORT], Cell(LONG, 0)
    learning = {name: settings[name] for name in ("steps", "rate", "batch", "aggregation")}
    train(model, [*short, long], seed=seed, **learning)
    symbols_NI = draw(settings["test_rows"], torch.Generator().manual_seed(10_000 + seed))
    matches = [exact_match(model, cell, symbols_NI) for cell in short]
    return {"short": math.fsum(matches) / len(matches), "long": exact_match(model, long, symbols_NI)}


ARMS = (
    Arm("P3", "eleven operations, in English alone", {**MIXTURE, "multilingual": False}),
    Arm("xP3", "each in English and two of three other languages", {**MIXTURE, "multilingual": True}),
    Arm("token mean", "three short tasks and a long one, every token alike", {**LENGTHS, "aggregation": "token_mean"}),
    Arm("target normalised", "the same, every target alike", {**LENGTHS, "aggregation": "sample_mean"}),
)

CLAIMS = (
    Claim(
        "1",
        "Fine-tuning in several languages carries over to (operation, language) pairs that were never seen.",
        "exact match on the held-out pairs, xP3 minus P3",
        lambda arms: arms["xP3"]["held_out"] - arms["P3"]["held_out"],
        0.4,
        Count(4, 5),
    ),
    Claim(
        "2",
        "It does not cost English.",
        "exact match on the operations in English, xP3 minus P3",
        lambda arms: arms["xP3"]["english"] - arms["P3"]["english"],
        0.0,
    ),
    Claim(
        "3",
        "Normalised by target, short tasks are not swamped by one with targets twenty times as long.",
        "exact match on the short tasks, target normalised minus token mean",
        lambda arms: arms["target normalised"]["short"] - arms["token mean"]["short"],
        0.0,
    ),
)

SYSTEM = System(
    15,
    "BLOOMZ and mT0",
    "Crosslingual Generalization through Multitask Finetuning",
    "arXiv 2211.01786, ACL 2023",
    "Fine-tuning on prompted tasks in many languages carries over to unseen tasks and unseen languages.",
    "scoring",
    Account(
        published=(
            "On XNLI, with English prompts and no example, BLOOM has 33.6, fine-tuned on English tasks 45.0, on tasks "
            "in 46 languages 52.0; mean over languages of the median over prompts.",
            "What is learned carries over to languages that were never intentionally seen.",
        ),
        faithful=(
            "Prompts in English before texts in any language; loss on targets alone.",
            "The loss normalised by target, (1/K) sum over targets of the mean over their tokens: `sample_mean`, exact "
            "over micro-batches and processes.",
            "One (operation, language) pair per operation is never trained on.",
        ),
        deviates=(
            "Four languages that rename sixteen symbols and a decoder of two layers, which copies and translates "
            "before, in place of BLOOM and xP3.",
            "Rows are drawn fresh and all cells alike: caps and language shares play no part here.",
        ),
        found=(
            "Training in several languages carries over, and costs English a few hundredths at as many steps, in "
            "every seed.",
        ),
        used="""
steps:
  joint:
    training: {aggregation: sample_mean, learning_rate: 2e-5, schedule: constant}
""",
        scales={
            "small": Scale(
                "A decoder of 2 layers and width 64: 300 steps of copying and translating, 1000 of operations; for the "
                "losses 300 of four tasks; on one CPU core, a seed takes about a minute and a half.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "held_out: mean exact match on the (operation, language) pairs that no arm trains on; seen: on the "
                    "other pairs outside English; english.",
                    "short, long: mean exact match on the tasks with targets of 6 and of 121 tokens.",
                ),
                seeds=5,
            ),
        },
    ),
)
