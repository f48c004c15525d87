"""The worlds of system 26: what a question can be answered from, what leaked, and that arms tell what is claimed."""

from __future__ import annotations

import pytest

from multitune.scoring.in_context.contamination import item_of, matches, ngram_length
from multitune.systems import gpt3
from multitune.systems.in_context_worlds import (
    MIDDLE,
    NAMES,
    SHORT,
    cloze_questions,
    leak,
    sentences,
    symbol_batches,
    symbol_questions,
    windows,
)

TINY = {
    "learner_steps": 2, "questions": 12, "cloze_steps": 2, "sentences": 64, "leak_steps": 2, "megabytes": 0.2,
    "items": 120,
}  # fmt: skip


@pytest.fixture(scope="module")
def leaked():
    return leak(0, megabytes=0.2, items=120)


def test_a_sequence_renames_every_symbol_once_and_only_answers_carry_loss():
    ids, labels = next(symbol_batches(0, size=8))
    assert ids.shape == (8, 26) and (labels[:, ::2] == -100).all() and (labels[:, 1::2] == ids[:, 1::2]).all()
    for row in ids.tolist():
        pairs = set(zip(row[::2], row[1::2], strict=True))
        assert len({x for x, _ in pairs}) == len({y for _, y in pairs}) == len(pairs) <= 6


def test_demonstrations_follow_the_renaming_of_their_question_unless_they_are_relabelled():
    for relabelled in (False, True):
        rows, shown = symbol_questions(300, 0, relabelled=relabelled)
        told = [(row, {one.prompt: one.target for one in list}) for row, list in zip(rows, shown, strict=True)]
        agree = [names[row.prompt] == row.target for row, names in told if row.prompt in names]
        assert len(agree) > 200
        assert 0.08 < sum(agree) / len(agree) < 0.28 if relabelled else all(agree)
        assert all(row.choices == NAMES for row in rows)


def test_frequent_verbs_are_short_and_favourites_are_not():
    language = sentences(0)
    lengths = [len(verb) for verb in language.verbs]
    assert max(lengths[: len(SHORT)]) <= 3 < min(lengths[len(SHORT) :]) and min(lengths[MIDDLE.stop :]) >= 7
    assert min(language.favourite) >= MIDDLE.start
    for row in cloze_questions(language, 50, 0):
        assert len(set(row.choices)) == 4
        assert row.target == language.verbs[language.favourite[language.nouns.index(row.prompt.split()[2])]]
        assert not any(a != b and a.startswith(b) for a in row.choices for b in row.choices)


def test_what_leaked_is_found_and_near_copies_are_not(leaked):
    items = [item_of(row.example.id, row.example.fields) for row in leaked.questions]
    found = matches({"leak": items}, ((str(i), text) for i, text in enumerate(leaked.documents)))["leak"]
    assert ngram_length([len(item.words) for item in items]) == 13
    assert set(found) == leaked.planted and not leaked.planted & leaked.changed
    assert len(leaked.planted) == 36 and len(leaked.changed) == 12
    assert all(int(found[place].where) == leaked.around[place] for place in found)


def test_a_reader_of_the_items_reads_their_answers_and_one_of_other_text_none(leaked):
    endings = {f"{leaked.questions[i].prompt} {leaked.questions[i].target}" for i in leaked.planted}
    for with_items in (True, False):
        read = windows(leaked, with_items=with_items)
        assert len(read) == 36 and max(len(one.split()) for one in read) <= 40
        whole = [any(one.endswith(end) for end in endings) for one in read]
        assert all(whole) if with_items else not any(whole)


@pytest.mark.parametrize("arm", gpt3.ARMS, ids=lambda arm: arm.name)
def test_every_arm_measures_what_the_claims_read(arm, tmp_path, monkeypatch):
    metrics = gpt3.run_small({**arm.settings, **TINY}, 0, tmp_path)
    assert all(isinstance(value, float) for value in metrics.values())
    if arm.settings["part"] == "learner":
        assert [metrics[f"used_{shots}"] for shots in gpt3.SHOTS] == list(gpt3.SHOTS)
        assert 0 <= metrics["at_8"] <= 1
    elif arm.settings["part"] == "cloze":
        assert {"none", "token", "unconditional", "letters", "letters_right"} <= metrics.keys()
    else:
        assert metrics["recall"] == 1 and metrics["false"] == 0


def test_the_claims_are_read_from_the_arms():
    arms = {
        "learner": {"at_0": 0.17, "at_1": 0.3, "at_2": 0.4, "at_8": 0.5},
        "relabelled": {"at_8": 0.2},
        "cloze": {"none": 0.4, "token": 0.6, "unconditional": 0.5, "letters": 5.0, "letters_right": 6.0},
        "read the items": {"recall": 0.9, "false": 0.02, "dirty": 0.9, "clean": 0.1},
        "read other text": {"dirty": 0.2, "clean": 0.1},
    }
    effects = {claim.key: claim.effect(arms) for claim in gpt3.CLAIMS}
    assert effects == pytest.approx(
        {"1a": 0.03 - (0.17 - 1 / 6), "1b": 0.1, "1c": 0.33, "1d": 0.05 - (0.2 - 1 / 6), "2a": 1.0, "2b": 0.1,
         "3a": -0.1, "3b": -0.01, "3c": 0.8, "3d": -0.05}
    )  # fmt: skip
