"""The invented headlines of system 07: what the tasks ask, that splits differ, and that arms tell what is claimed."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from multitune.systems import cocktail, finance_world
from multitune.systems.finance_world import (
    ANSWERS,
    END,
    FIRST_ANSWER,
    FIRST_DIGIT,
    FIRST_DIRECTION,
    FIRST_WORD,
    PADDING,
    SEPARATOR,
    TASKS,
    lexicon,
    mixed,
    rows_of,
)

TINY = {"rows": 8, "test_rows": 10, "epochs": 1, "batch": 8, "base_steps": 2, "base_rows": 10}


def parts(task: str, count: int = 40) -> list[tuple[list[int], list[int]]]:
    """What is read and answered, as token ids."""
    rows, found = rows_of(task, count, 0, "train"), []
    for ids, labels in zip(rows.ids.tolist(), rows.labels.tolist(), strict=True):
        answer = [label for label in labels if label != -100]
        assert answer[-1] == END
        whole = [token for token in ids if token != PADDING]
        found.append((whole[1 : -len(answer) - 1], answer[:-1]))
    return found


def number(tokens: list[int]) -> int:
    return int("".join(str(token - FIRST_DIGIT) for token in tokens))


def test_sentiment_is_the_sign_of_the_polarities():
    words = lexicon(0)
    for read, answer in parts("A"):
        total = sum(words.polarity[token - FIRST_WORD] for token in read)
        assert ANSWERS[answer[0] - FIRST_ANSWER] == ("negative", "neutral", "positive")[(total > 1) - (total < -1) + 1]
        assert 8 <= len(read) <= 12


def test_prices_and_sums_are_what_is_written():
    words = lexicon(0)
    for read, answer in parts("D"):
        (direction,) = [token - FIRST_DIRECTION for token in read if token >= FIRST_DIRECTION]
        assert ANSWERS[answer[0] - FIRST_ANSWER] == ("up" if words.direction[direction] > 0 else "down")
    for read, answer in parts("M"):
        cut = read.index(SEPARATOR)
        assert number(read[:cut]) + number(read[cut + 1 :]) == number(answer)
    for read, answer in parts("E"):
        digits = [token for token in read if FIRST_DIGIT <= token < FIRST_WORD]
        assert number(digits[:1]) + number(digits[1:]) == number(answer)


def test_the_better_headline_is_better_and_a_copy_is_a_copy():
    words = lexicon(0)

    def sign(read):
        total = sum(words.polarity[token - FIRST_WORD] for token in read)
        return (total > 1) - (total < -1)

    for read, answer in parts("C"):
        cut = read.index(SEPARATOR)
        first = sign(read[:cut]) > sign(read[cut + 1 :])
        assert ANSWERS[answer[0] - FIRST_ANSWER] == ("first" if first else "second")
    assert all(read == answer for read, answer in parts("G"))


def test_answers_at_random_say_nothing_and_splits_differ():
    answers = [answer[0] for _, answer in parts("S", 400)]
    assert 150 < answers.count(FIRST_ANSWER + ANSWERS.index("yes")) < 250
    assert set(map(tuple, rows_of("A", 50, 0, "train").ids.tolist())).isdisjoint(
        map(tuple, rows_of("A", 50, 0, "test").ids.tolist())
    )
    assert lexicon(0) != lexicon(1)


def test_a_mixture_holds_every_row_of_its_parts():
    one, other = rows_of("M", 5, 0, "train"), rows_of("C", 7, 0, "train")
    both = mixed([one, other])
    assert len(both) == 12
    assert torch.equal(both.ids[:5, : one.ids.shape[1]], one.ids)
    assert (both.labels[:5, one.ids.shape[1] :] == -100).all()


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_the_seeds(task):
    assert torch.equal(rows_of(task, 4, 3, "train").ids, rows_of(task, 4, 3, "train").ids)


def test_the_arms_tell_what_the_claims_ask(tmp_path):
    arms = {arm.name: cocktail.run_small({**arm.settings, **TINY}, 0, tmp_path) for arm in cocktail.ARMS}
    assert all(math.isfinite(claim.effect(arms)) for claim in cocktail.CLAIMS if claim.key != "4")
    assert arms["base"]["forgetting"] == 0.0
    steps = {name: metrics["steps"] for name, metrics in arms.items()}
    assert (steps["base"], steps["A"], steps["ABC fixed"], steps["ABC additive"]) == (0, 1, 1, 3)
    assert steps["A, three times as long"] == 3
    assert cocktail.run_small({**cocktail.ARMS[1].settings, **TINY}, 0, tmp_path) == arms["A"]


def test_a_headline_has_more_of_one_tone():
    words, draw = lexicon(0), Random(0)
    signs = [finance_world.headline(words, draw)[1] for _ in range(300)]
    assert min(signs.count(sign) for sign in (-1, 0, 1)) > 45
