"""The made-up texts of system 19, and that the arms tell what is claimed."""

from __future__ import annotations

import numpy as np
import pytest

from multitune.systems.pcp import ARMS, CLAIMS, run_small
from multitune.systems.sentiment_world import (
    AGREEMENT,
    LABEL_WORDS,
    LABELLED_SHARE,
    NEGATIVE,
    POSITIVE,
    TEMPLATE_WORDS,
    WORDS,
    few,
    general_corpus,
    texts,
    word_tokenizer,
)


def test_half_of_a_text_has_the_mood_of_its_class():
    drawn, classes = texts(2000, np.random.default_rng(0))
    assert sum(classes) == 1000 and {len(words) for words in drawn} == {WORDS}
    agree = [
        sum(word in (NEGATIVE, POSITIVE)[label] for word in words) for words, label in zip(drawn, classes, strict=True)
    ]
    moody = [sum(word in NEGATIVE + POSITIVE for word in words) for words in drawn]
    assert set(moody) == {5}
    assert sum(agree) / sum(moody) == pytest.approx(AGREEMENT, abs=0.02)
    assert texts(5, np.random.default_rng(3)) == texts(5, np.random.default_rng(3))


def test_a_tenth_of_the_general_texts_hold_a_label_word_and_the_tokenizer_knows_all():
    lines = general_corpus(3000, np.random.default_rng(0))
    labelled = [line for line in lines if set(line.split()) & set(LABEL_WORDS)]
    assert len(labelled) / len(lines) == pytest.approx(LABELLED_SHARE, abs=0.02)
    assert any(set(line.split()) & set(TEMPLATE_WORDS) for line in lines)
    tokenizer = word_tokenizer(sorted({word for line in lines for word in line.split()}))
    assert tokenizer.unk_token_id not in tokenizer(lines[0]).input_ids
    assert sorted(few(3, np.random.default_rng(1))[1]) == [0.0] * 3 + [1.0] * 3


def test_the_arms_tell_what_the_claims_ask(tmp_path):
    sizes = {"general": 200, "unlabelled": 40, "test": 40, "general_steps": 4, "steps": 4, "few_steps": 2}
    arms = {arm.name: run_small({**arm.settings, **sizes}, 0, tmp_path / arm.name) for arm in ARMS}
    assert len({metrics["few_shot"] for metrics in arms.values()}) == 1, "one base, one few-shot answer"
    assert arms["PCP, gold labels"]["labels"] == 1.0
    assert all(0 <= value <= 1 for metrics in arms.values() for value in metrics.values())
    assert all(isinstance(claim.effect(arms), float) for claim in CLAIMS)
