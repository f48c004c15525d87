"""Solved rows before training rows: drawn by the row, never the row itself, whole or not at all, without loss."""

from __future__ import annotations

from collections import Counter

import pytest

from multitune.errors import MultituneError
from multitune.mixing.encoding import encode
from multitune.mixing.tokens import tokenise
from multitune.mixing.training_demonstrations import SEPARATOR, TrainingDemonstrations
from multitune.tasks.prompting import prompted_examples, resolve

PAIRS = [{"prompt": f"one {number}", "completion": f"two {number}"} for number in range(300)]


@pytest.fixture
def shown(toy_task, tmp_path):
    task = resolve(toy_task("pairs", PAIRS).model_copy(update={"train_shots": 3}), tmp_path)
    return task, list(prompted_examples(task, "train", tmp_path)), TrainingDemonstrations(task, tmp_path)


def test_few_demonstrations_are_likelier_and_none_is_the_row_itself(shown):
    _, rows, demonstrations = shown
    drawn = [demonstrations.drawn(row) for row in rows]
    counts = Counter(map(len, drawn))  # p(k) ~ 1, 1/2, 1/3, 1/4
    for k in range(4):
        assert abs(counts[k] / 300 - (1 / (k + 1)) / (25 / 12)) < 0.09
    assert all(row.prompt not in {one.prompt for one in found} for row, found in zip(rows, drawn, strict=True))
    assert drawn == [demonstrations.drawn(row) for row in rows]


def test_the_loss_is_on_the_rows_own_target_alone(shown, tmp_path, gpt):
    task, rows, demonstrations = shown
    table = tokenise(task, "train", gpt, "causal", tmp_path, max_length=200, cache=tmp_path / "cache")
    for index in range(40):
        found = demonstrations.drawn(rows[index])
        text = SEPARATOR.join([*(f"{one.prompt} {one.target}" for one in found), rows[index].prompt])
        ids, labels = encode(rows[index], gpt, "causal", task.chat)
        row = table.row(index)
        own = [label for label in labels if label != -100]
        assert [label for label in row["labels"].tolist() if label != -100] == own
        assert gpt.decode(row["input_ids"][: -len(own)]).strip() == text
        if not found:
            assert row["input_ids"].tolist() == ids


def test_what_does_not_fit_is_left_out_whole_from_the_front(shown, gpt):
    task, rows, demonstrations = shown
    index = next(i for i, row in enumerate(rows) if len(demonstrations.drawn(row)) == 3)
    found = demonstrations.drawn(rows[index])
    whole = SEPARATOR.join([*(f"{one.prompt} {one.target}" for one in found), rows[index].prompt])
    (packed,) = demonstrations.before([rows[index]], gpt, "causal", 500)
    assert packed.prompt == whole
    length = len(encode(packed, gpt, "causal", task.chat)[0])
    (shorter,) = demonstrations.before([rows[index]], gpt, "causal", length - 1)
    assert shorter.prompt == whole.partition(SEPARATOR)[2]
    (alone,) = demonstrations.before([rows[index]], gpt, "causal", 3)
    assert alone == rows[index]


def test_tables_with_and_without_are_told_apart_and_scored_rows_have_none(toy_task, tmp_path, gpt):
    plain = toy_task("pairs", PAIRS[:20])
    tables = [
        tokenise(
            plain.model_copy(update={"train_shots": shots}), "train", gpt, "causal", tmp_path, max_length=64,
            cache=tmp_path / "cache",
        )
        for shots in (0, 2)
    ]  # fmt: skip
    assert tables[0].fingerprint != tables[1].fingerprint and tables[1].lengths.sum() > tables[0].lengths.sum()


def test_chats_are_refused(toy_task, tmp_path):
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    task = resolve(toy_task("chat", [{"messages": turns}] * 3).model_copy(update={"train_shots": 2}), tmp_path)
    with pytest.raises(MultituneError, match="demonstrations already"):
        TrainingDemonstrations(task, tmp_path)
