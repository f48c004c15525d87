"""Scores of models whose answers are known, read from files as users have them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.heads import encoder_with_heads
from multitune.models.loading import Backbone
from multitune.scoring.choosing import choice_tokens
from multitune.scoring.predictions import read_predictions
from multitune.scoring.rows import sample
from multitune.scoring.score import ScoreConfig, save_predictions, score_tasks, scored_split
from multitune.tasks.prompting import prompted_examples, resolve
from multitune.tasks.task import Example, Prompted, Task

ALL = ScoreConfig()


def task_of(
    folder: Path, rows: list[dict[str, Any]], name: str = "letters", split: str = "test", **settings: Any
) -> Task:
    """A resolved task whose rows lie in a file of the folder."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return resolve(Task(name=name, **{split: {"path": f"{name}.jsonl"}}, **settings), folder)


def score_one(backbone: Backbone, task: Task, folder: Path, config: ScoreConfig = ALL):
    (score,) = score_tasks(backbone, [task], folder, config, seed=0)
    return score


def test_labels_are_the_most_probable_choices(chain, tmp_path):
    # Prompts end in white space, so that no space stands between a prompt and its choice.
    backbone = chain({"Ċ": {"b": 0.75, "c": 0.25}, "ĉ": {"b": 0.25, "c": 0.75}})
    texts = [("one\n", "b"), ("two\t", "c"), ("three\n", "c"), ("four\t", "c")]
    rows = [{"text": text, "label": label} for text, label in texts]
    task = task_of(tmp_path, rows, kind="label", prompt="{{ text }}", target="{{ label }}", choices=("b", "c"))
    score = score_one(backbone, task, tmp_path)
    assert (score.task, score.split, score.n, score.metrics["accuracy"]) == ("letters", "test", 4, 0.75)
    assert [one.prediction for one in score.predictions] == ["b", "c", "b", "c"]
    assert [one.reference for one in score.predictions] == ["b", "c", "c", "c"]
    assert [one.correct for one in score.predictions] == [True, True, False, True]
    assert [one.score for one in score.predictions] == [1.0, 1.0, 0.0, 1.0]
    assert score.predictions[2].prompt == "three\n"
    assert score.predictions[2].where.endswith(":3")
    low, high = score.intervals["accuracy"]
    assert 0 <= low < 0.75 < high <= 1
    assert set(score.intervals) == set(score.metrics)


def test_every_example_has_choices_of_its_own(chain, tmp_path):
    backbone = chain({"Ċ": {"b": 0.75, "c": 0.25}, "b": {"x": 0.1, "y": 0.9}, "c": {"x": 1.0}})
    rows = [
        {"text": "one\n", "options": ["bx", "cx"], "answer": "cx"},  # 0.075 against 0.25
        {"text": "two\n", "options": ["cx", "by", "bx"], "answer": "by"},
    ]
    settings = {"prompt": "{{ text }}", "target": "{{ answer }}", "choices": "options"}
    score = score_one(backbone, task_of(tmp_path, rows, kind="choose", **settings), tmp_path)
    assert [one.prediction for one in score.predictions] == ["cx", "by"]
    assert score.metrics["accuracy"] == 1.0


def test_a_choice_that_begins_another_can_lose_to_it(chain, tmp_path):
    backbone = chain({"Ċ": {"1": 0.9, "2": 0.1}, "1": {"0": 0.8, "</s>": 0.2}, "0": {"</s>": 1.0}, "2": {"</s>": 1.0}})
    task = task_of(
        tmp_path, [{"text": "n\n", "label": "10"}], kind="label", prompt="{{ text }}", target="{{ label }}",
        choices=("1", "10", "2"),
    )  # fmt: skip
    assert score_one(backbone, task, tmp_path).predictions[0].prediction == "10"
    rows = list(prompted_examples(task, "test", tmp_path))
    assert [len(choice) for choice in choice_tokens(backbone, task, rows)[0]] == [2, 3, 2]


@pytest.mark.parametrize(("normalisation", "best"), [("none", "b"), ("token", "cdef"), ("character", "cdef")])
def test_long_choices_can_be_put_on_even_terms(chain, tmp_path, normalisation, best):
    # b: log 0.5; cdef: log(0.4 * 0.7^3), less in sum but more per token.
    backbone = chain(
        {
            "Ċ": {"b": 0.5, "c": 0.4, "x": 0.1},
            "c": {"d": 0.7, "x": 0.3},
            "d": {"e": 0.7, "x": 0.3},
            "e": {"f": 0.7, "x": 0.3},
        }
    )
    task = task_of(
        tmp_path, [{"text": "n\n", "label": "b"}], kind="label", prompt="{{ text }}", target="{{ label }}",
        choices=("b", "cdef"),
    )  # fmt: skip
    config = ScoreConfig(choice_normalisation=normalisation)
    assert score_one(backbone, task, tmp_path, config).predictions[0].prediction == best


def test_generated_texts_are_compared_with_their_targets(chain, tmp_path):
    backbone = chain({"a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"!": 1.0}, "!": {"x": 1.0}, "d": {"</s>": 1.0}})
    rows = [{"q": "a", "reply": "bc"}, {"q": "b", "reply": "d"}, {"q": "d", "reply": "c"}]
    task = task_of(
        tmp_path, rows, kind="generate", prompt="{{ q }}", target="{{ reply }}", stop=("!",), max_new_tokens=8
    )
    score = score_one(backbone, task, tmp_path)
    assert [one.prediction for one in score.predictions] == ["bc", "c", ""]
    assert [one.correct for one in score.predictions] == [True, False, False]
    assert score.metrics["exact_match"] == pytest.approx(1 / 3)


def test_numbers_are_read_from_texts_and_missing_ones_are_told(chain, tmp_path, caplog):
    backbone = chain(
        {"a": {"2": 1.0}, "2": {".": 1.0}, ".": {"5": 1.0}, "5": {"</s>": 1.0}, "b": {"x": 1.0}, "x": {"</s>": 1.0}}
    )
    rows = [{"q": "a", "value": 2.0}, {"q": "b", "value": 1.0}]
    task = task_of(tmp_path, rows, kind="regress", prompt="{{ q }}", target="{{ value }}", max_new_tokens=6)
    with caplog.at_level(logging.WARNING, logger="multitune.scoring"):
        score = score_one(backbone, task, tmp_path)
    assert [one.prediction for one in score.predictions] == [2.5, 0.0]
    assert score.unparsed == 1
    assert "letters: 1 of 2 answers hold no number; they count as 0." in caplog.messages
    assert score.metrics["mse"] == pytest.approx((0.25 + 1.0) / 2)
    assert [one.correct for one in score.predictions] == [None, None]


def test_heads_answer_on_encoders(tokenizer, tmp_path):
    rows = [{"text": text, "label": label} for text, label in (("one", "red"), ("two", "blue"), ("three", "red"))]
    settings = {"kind": "label", "prompt": "{{ text }}", "target": "{{ label }}", "choices": ("red", "blue")}
    task = task_of(tmp_path, rows, name="colour", **settings)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    model = encoder_with_heads(BertModel(config, add_pooling_layer=False), [task], seed=0)
    with torch.no_grad():
        model.bias[:] = torch.tensor([5.0, -5.0])  # always red
    backbone = Backbone(model, tokenizer, "encoder", ModelConfig(name="bert"), (task,))
    score = score_one(backbone, task, tmp_path)
    assert [one.prediction for one in score.predictions] == ["red"] * 3
    assert score.metrics["accuracy"] == pytest.approx(2 / 3)
    other = task.model_copy(update={"name": "shape"})
    with pytest.raises(MultituneError, match="no head for task 'shape'"):
        score_one(backbone, other, tmp_path)


def test_predictions_are_kept_per_task_and_progress_is_told(chain, tmp_path):
    backbone = chain({"a": {"b": 1.0}, "b": {"</s>": 1.0}})
    tasks = [
        task_of(
            tmp_path, [{"q": "a", "reply": "b"}] * 3, name=name, kind="generate", prompt="{{ q }}", target="{{ reply }}"
        )
        for name in ("first", "second")
    ]
    tasks = [task.model_copy(update={"max_new_tokens": 4}) for task in tasks]
    seen: list[tuple[str, int, int]] = []
    scores = score_tasks(backbone, tasks, tmp_path, ALL, seed=0, progress=lambda *at: seen.append(at))
    assert seen == [("first", 3, 3), ("second", 3, 3)]
    files = save_predictions(scores, tmp_path / "predictions")
    assert [file.name for file in files] == ["first.jsonl", "second.jsonl"]
    assert read_predictions(files[1]) == scores[1].predictions


def test_a_task_without_test_rows_is_scored_on_validation(chain, tmp_path):
    backbone = chain({"a": {"b": 1.0}, "b": {"</s>": 1.0}})
    settings = {"kind": "generate", "prompt": "{{ q }}", "target": "{{ reply }}", "max_new_tokens": 4}
    task = task_of(tmp_path, [{"q": "a", "reply": "b"}], split="validation", **settings)
    assert scored_split(task, "test") == "validation"
    assert score_one(backbone, task, tmp_path).split == "validation"
    trained = task_of(tmp_path, [{"q": "a", "reply": "b"}], split="train", **settings)
    assert scored_split(trained, "test") is None
    with pytest.raises(MultituneError, match="has no examples to score"):
        score_one(backbone, trained, tmp_path)


def test_a_task_without_rows_is_refused(chain, tmp_path):
    task = task_of(tmp_path, [{"q": "a", "reply": "b"}], kind="generate", prompt="{{ q }}", target="{{ reply }}")
    (tmp_path / "letters.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(MultituneError):
        score_one(chain({}), task, tmp_path)


def prompted(name: str, template: int = 0) -> Prompted:
    return Prompted(Example(name, name, {}), template, f"{name} {template}", (), "", (), None, None)


def test_a_choice_without_text_is_refused(chain, tmp_path):
    task = Task(name="letters", kind="choose")
    row = Prompted(Example("a", "a.jsonl:1", {}), 0, "q", (), "", ("b", ""), 0, None)
    with pytest.raises(MultituneError, match="a choice without text") as refused:
        choice_tokens(chain({}), task, [row])
    assert refused.value.where == "a.jsonl:1"


def test_rows_that_ask_the_same_in_the_same_place_share_their_tokens(chain, ids):
    row = Prompted(Example("a", "a.jsonl:1", {}), 0, "q", (), "", ("yes", "no"), 0, None)
    rows = [row, replace(row, prompt="other"), replace(row, prompt="q\n"), replace(row, choices=("no", "yes"))]
    first, second, after_break, reversed_choices = choice_tokens(chain({}), Task(name="letters", kind="label"), rows)
    assert first is second
    assert first == [ids(" yes"), ids(" no")]
    assert after_break == [ids("yes"), ids("no")]
    assert reversed_choices == first[::-1]


@given(st.sets(st.text(min_size=1, max_size=3), max_size=30).map(sorted), st.integers(1, 40), st.randoms())
def test_a_sample_depends_on_ids_alone_and_grows(names, examples, random):
    def chosen(order: list[str], count: int) -> set[str]:
        return {one.example.id for one in sample(iter([prompted(name) for name in order]), count)}

    shuffled = random.sample(names, len(names))
    assert chosen(names, examples) == chosen(shuffled, examples)
    assert len(chosen(names, examples)) == min(examples, len(names))
    assert chosen(names, examples) <= chosen(names, examples + 1)


def test_a_sample_keeps_the_order_and_all_templates():
    def stream() -> Iterator[Prompted]:
        for i in range(50):
            yield from (prompted(f"row {i}", template) for template in range(3))

    rows = sample(stream(), 10)
    assert len(rows) == 30
    assert [one.template for one in rows] == [0, 1, 2] * 10
    numbers = [int(one.example.id.split()[1]) for one in rows[::3]]
    assert numbers == sorted(numbers) and numbers != list(range(10))
    assert len(sample(stream(), None)) == 150


def test_the_same_rows_are_scored_for_every_seed(chain, tmp_path):
    backbone = chain({"a": {"b": 1.0}, "b": {"</s>": 1.0}})
    rows = [{"q": "a", "reply": "b"} for _ in range(20)]
    task = task_of(tmp_path, rows, kind="generate", prompt="{{ q }}", target="{{ reply }}", max_new_tokens=4)
    config = ScoreConfig(rows=5)
    first, second = (score_tasks(backbone, [task], tmp_path, config, seed=seed)[0] for seed in (0, 1))
    assert [one.id for one in first.predictions] == [one.id for one in second.predictions]
    assert first.n == 5


def test_a_reference_ends_before_a_stop_string_as_an_answer_does(chain, tmp_path):
    backbone = chain({"Ċ": {"a": 1.0}, "a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"d": 1.0}})
    task = task_of(
        tmp_path,
        [{"q": "x\n", "a": "ab c"}],
        kind="generate",
        prompt="{{ q }}",
        target="abcd",
        stop="c",
        max_new_tokens=8,
    )
    score = score_one(backbone, task, tmp_path)
    assert [(one.prediction, one.reference) for one in score.predictions] == [("ab", "ab")]
    assert score.metrics["exact_match"] == 1.0
