"""Choices under every normalisation: worked numbers, and what must agree."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.scoring.normalisations import NORMALISATIONS, ChoiceScores, best_choice, priors
from multitune.scoring.score import ScoreConfig, score_tasks
from multitune.scoring.scoreboard import COLUMNS, as_chosen, measures, score_rows
from multitune.tasks.prompting import resolve
from multitune.tasks.task import Task
from tests.mixing.conftest import CHATML, byte_level

ALL = ScoreConfig(all_normalisations=True)
WORKED = ChoiceScores(np.array([-4.0, -3.0]), np.array([4, 2]), ["abcdefgh", "äb"], np.array([-9.0, -3.5]))


def test_worked_numbers():
    found = {name: normalise(WORKED).tolist() for name, normalise in NORMALISATIONS.items()}
    assert found == {
        "none": [-4.0, -3.0],
        "token": [-1.0, -1.5],
        "character": [-0.5, -1.5],
        "byte": [-0.5, -1.0],
        "unconditional": [5.0, 0.5],
    }
    assert [best_choice(WORKED, name) for name in NORMALISATIONS] == [1, 0, 0, 0, 0]


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6), st.integers(1, 9))
def test_choices_of_one_length_are_compared_by_their_sums(log_p, tokens):
    one = ChoiceScores(np.array(log_p), np.full(len(log_p), tokens), ["x" * tokens] * len(log_p))
    assert best_choice(one, "none") == best_choice(one, "token") == best_choice(one, "character")


def test_the_unconditional_one_needs_what_it_divides_by():
    with pytest.raises(ValueError, match="answer context"):
        best_choice(ChoiceScores(np.zeros(2), np.ones(2), ["a", "b"]), "unconditional")


def rows_of(tmp_path, choices=("b", "cdef", "gh")) -> Task:
    rows = [{"text": text, "label": label} for text, label in (("one two", "b"), ("three", "cdef"), ("four!", "gh"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"kind": "label", "prompt": "{{ text }}\n", "target": "{{ label }}", "choices": choices}
    return resolve(Task(name="letters", test="rows.jsonl", **settings), tmp_path)


def test_a_model_that_knows_nothing_ties_and_the_first_choice_wins(backbone_of, tmp_path):
    backbone = backbone_of("gpt2")
    weights = backbone.model.lm_head.weight.detach().clone()
    config = ScoreConfig(choice_normalisation="unconditional", answer_context="")
    try:
        with torch.no_grad():
            backbone.model.lm_head.weight.zero_()
        (score,) = score_tasks(backbone, [rows_of(tmp_path)], tmp_path, config, seed=0)
    finally:
        with torch.no_grad():
            backbone.model.lm_head.weight.copy_(weights)
    assert [one.prediction for one in score.predictions] == ["b"] * 3


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_one_pass_gives_what_every_normalisation_gives_alone(backbone_of, tmp_path, family):
    backbone, task = backbone_of(family), rows_of(tmp_path)
    (together,) = score_tasks(backbone, [task], tmp_path, ALL, seed=0)
    found = {one.normalisation: [p.prediction for p in one.predictions] for one in (together, *together.others)}
    assert list(found) == list(NORMALISATIONS)
    for name in ("character", "unconditional"):
        config = ScoreConfig(choice_normalisation=name, batch_tokens=1)
        (alone,) = score_tasks(backbone, [task], tmp_path, config, seed=0)
        assert [one.prediction for one in alone.predictions] == found[name]


def test_priors_are_the_probabilities_after_the_answer_context(chain, ids):
    backbone = chain({":": {"b": 0.5, "c": 0.25, "x": 0.25}, "b": {"c": 0.5, "x": 0.5}, "c": {"b": 0.125, "x": 0.875}})
    found = priors(backbone, [[ids("b"), ids("bc")], [ids("bc"), ids("cb")]], "A:", batch_tokens=64)
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.25], [0.25, 0.03125]], rtol=1e-5)


def test_what_a_context_adds_can_beat_what_is_likely_anyway(chain, tmp_path):
    # After a line break b is more likely than gh; but after "Answer:" b is likelier still, and gh is not.
    after = {"Ċ": {"b": 0.6, "g": 0.4}, ":": {"b": 0.9, "g": 0.1}, "g": {"h": 1.0}}
    (score,) = score_tasks(chain(after), [rows_of(tmp_path, ("b", "gh", "cdef"))], tmp_path, ALL, seed=0)
    found = {one.normalisation: one.predictions[2].prediction for one in (score, *score.others)}
    assert found["none"] == "b" and found["unconditional"] == "gh"


def test_rows_of_every_normalisation_stand_on_the_board_the_chosen_first(chain, tmp_path):
    (score,) = score_tasks(chain({"Ċ": {"b": 1.0}}), [rows_of(tmp_path)], tmp_path, ALL, seed=0)
    rows = score_rows(measures([score]), run="r", step="s", model="m", seed=0)
    assert [row["normalisation"] for row in rows if row["metric"] == "accuracy"] == list(NORMALISATIONS)
    assert set(rows[0]) | {"variant"} == set(COLUMNS)
    assert {row["normalisation"] for row in as_chosen(rows)} == {"none"}
    assert len(as_chosen(rows)) * len(NORMALISATIONS) == len(rows)


def partly(tmp_path, **settings) -> Task:
    """Two sentences that a choice stands in the middle of."""
    ends = (("\nd", "b"), ("\td", "c"))
    rows = [{"before": "x\n", "options": ["b", "c"], "after": after, "answer": answer} for after, answer in ends]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"kind": "choose", "choices": "options", "prompt": "{{ before }}", "target": "{{ answer }}"} | settings
    return resolve(Task(name="winograd", test="rows.jsonl", **settings), tmp_path)


def test_choices_can_be_compared_by_what_follows_them(chain, tmp_path):
    # c is always the likelier choice; but a line break is likelier after b, and a tab after c.
    after = {"Ċ": {"b": 0.1, "c": 0.8, "d": 0.1}, "ĉ": {"d": 1.0}, "b": {"Ċ": 0.9, "ĉ": 0.1}, "c": {"Ċ": 0.1, "ĉ": 0.9}}
    backbone = chain(after)
    (plain,) = score_tasks(backbone, [partly(tmp_path)], tmp_path, ScoreConfig(), seed=0)
    assert [one.prediction for one in plain.predictions] == ["c", "c"]
    task = partly(tmp_path, continuation="{{ after }}")
    (score,) = score_tasks(backbone, [task], tmp_path, ScoreConfig(), seed=0)
    assert [one.prediction for one in score.predictions] == ["b", "c"]
    assert (score.metrics["accuracy"], score.predictions[0].prompt) == (1.0, "x\n")
    shown = ScoreConfig(shots=1, demonstrations={"split": "test"})
    (score,) = score_tasks(backbone, [task], tmp_path, shown, seed=0)
    assert score.shots_used == 0.0  # both rows ask the same: neither is shown before the other


def test_a_continuation_needs_a_choice_and_a_text(chain, tmp_path):
    with pytest.raises(ValueError, match="it needs kind label or choose"):
        Task(name="t", kind="generate", continuation="{{ after }}")
    with pytest.raises(MultituneError, match="has an empty continuation") as refused:
        score_tasks(chain({}), [partly(tmp_path, continuation="{{ none or '' }}")], tmp_path, ScoreConfig(), seed=0)
    assert refused.value.where == "rows.jsonl:1"
    backbone, chat = chain({}), partly(tmp_path, continuation="{{ after }}", chat="always")
    backbone.tokenizer = byte_level(chat_template=CHATML)
    with pytest.raises(MultituneError, match="is asked as a chat"):
        score_tasks(backbone, [chat], tmp_path, ScoreConfig(), seed=0)
