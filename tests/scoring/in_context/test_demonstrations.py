"""Which demonstrations a question gets, and how they are written before it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.mixing.encoding import encode_prompts, plain_prompt
from multitune.scoring.in_context.demonstrations import (
    Demonstrations,
    demonstrations_for,
    pool_of,
    shuffled_places,
)
from multitune.scoring.in_context.packing import pack, with_demonstrations
from multitune.scoring.rows import sample
from multitune.scoring.score import ScoreConfig, score_tasks
from multitune.tasks.prompting import prompted_examples, resolve
from multitune.tasks.task import Message, Prompted, Task
from tests.mixing.conftest import CHATML, byte_level
from tests.scoring.conftest import chain, tokenizer

__all__ = ["chain", "tokenizer"]

SETTINGS = Demonstrations()


def task_of(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]], **settings: Any) -> Task:
    """A resolved task with rows {q, a} in two files."""
    for split, rows in (("train", train), ("test", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"prompt": "Q{{ q }}", "target": "{{ a }}", "kind": "generate", "max_new_tokens": 2, **settings}
    return resolve(Task(name="letters", train="train.jsonl", test="test.jsonl", **settings), folder)


def solved(*questions: int) -> list[dict[str, Any]]:
    return [{"q": q, "a": f"a{q}"} for q in questions]


def asked(task: Task, folder: Path) -> list[Prompted]:
    return list(prompted_examples(task, "test", folder, templates="first"))


def drawn(task: Task, folder: Path, shots: int, **settings: Any) -> list[list[str]]:
    """The prompts of every test question's demonstrations."""
    config = Demonstrations(**settings)
    pool = pool_of(task, folder, config, templates="first")
    return [[one.prompt for one in demonstrations_for(row, pool, shots, config)] for row in asked(task, folder)]


@given(st.integers(0, 60), st.integers(0, 5))
def test_a_shuffle_comes_one_by_one_and_holds_everything_once(n, seed):
    whole = list(shuffled_places(n, Random(seed)))
    assert sorted(whole) == list(range(n))
    beginning = [place for place, _ in zip(shuffled_places(n, Random(seed)), range(n // 2), strict=False)]
    assert whole[: n // 2] == beginning


def test_every_order_is_equally_likely():
    counts = Counter(tuple(shuffled_places(3, Random(seed))) for seed in range(6000))
    assert len(counts) == 6 and all(850 < count < 1150 for count in counts.values())


def test_more_demonstrations_go_on_where_fewer_ended(tmp_path):
    task = task_of(tmp_path, solved(*range(30)), solved(100, 101, 102))
    four, eight = drawn(task, tmp_path, 4), drawn(task, tmp_path, 8)
    assert [one[:4] for one in eight] == four
    assert all(len(set(one)) == 8 for one in eight)  # without replacement
    assert four == drawn(task, tmp_path, 4)
    assert four != drawn(task, tmp_path, 4, seed=1)
    assert len({tuple(one) for one in four}) == 3  # every question draws anew
    assert len({tuple(one) for one in drawn(task, tmp_path, 4, draw="fixed")}) == 1


@pytest.mark.parametrize("draw", ["per_item", "fixed"])
def test_a_question_never_stands_before_itself(tmp_path, draw):
    copies = [{"q": 1, "a": "another answer"}, {"q": 1, "a": "a1"}]
    task = task_of(tmp_path, solved(0, 1, 2, 3) + copies, solved(1, 7))
    for seed in range(5):
        first, second = drawn(task, tmp_path, 9, seed=seed, draw=draw)
        assert sorted(first) == ["Q0", "Q2", "Q3"]
        assert len(second) == 6
    first, second = drawn(task, tmp_path, 9, split="test")
    assert (first, second) == (["Q7"], ["Q1"])


def test_demonstrations_come_from_train_else_from_validation(tmp_path):
    task = task_of(tmp_path, solved(1), solved(2))
    only = task.model_copy(update={"train": None, "validation": task.train})
    assert drawn(only, tmp_path, 1) == [["Q1"]]
    with pytest.raises(MultituneError, match="no validation rows to show as demonstrations"):
        drawn(task.model_copy(update={"train": None}), tmp_path, 1)


def test_a_pool_is_the_sample_that_is_scored_of_as_many_rows(tmp_path):
    task = task_of(tmp_path, solved(*range(50)), solved(100))
    pool = pool_of(task, tmp_path, Demonstrations(pool=7), templates="first")
    rows = prompted_examples(task, "train", tmp_path, templates="first")
    assert [one.example.id for one in pool.by_template[0]] == [one.example.id for one in sample(rows, 7)]


def test_demonstrations_are_asked_through_the_template_of_the_question(tmp_path):
    task = task_of(tmp_path, solved(*range(9)), solved(100), prompt=("Q{{ q }}", "ask {{ q }}"))
    rows = list(prompted_examples(task, "test", tmp_path, templates="all"))
    pool = pool_of(task, tmp_path, SETTINGS, templates="all")
    first, second = [[one.prompt for one in demonstrations_for(row, pool, 3, SETTINGS)] for row in rows]
    assert [prompt.replace("Q", "ask ") for prompt in first] == second


def test_without_demonstrations_a_question_is_asked_as_it_is(chain, tmp_path):
    task = task_of(tmp_path, solved(1), solved(2))
    rows = asked(task, tmp_path)
    packed = with_demonstrations(chain({}), task, rows, tmp_path, ScoreConfig())
    assert packed.rows == rows and packed.used == [0]
    instructed = ScoreConfig(demonstrations=Demonstrations(instruction="Answer."))
    packed = with_demonstrations(chain({}), task, rows, tmp_path, instructed)
    assert [row.prompt for row in packed.rows] == ["Answer.\n\nQ2"]


def test_a_prompt_is_instruction_demonstrations_and_question(chain, tmp_path):
    task = task_of(tmp_path, solved(1), solved(2))
    config = ScoreConfig(shots=1, demonstrations=Demonstrations(instruction="Do.", separator="\n"))
    packed = with_demonstrations(chain({}), task, asked(task, tmp_path), tmp_path, config)
    assert [row.prompt for row in packed.rows] == ["Do.\n\nQ1 a1\nQ2"]
    assert packed.rows[0].target == "a2"
    assert (packed.used, packed.mean_used, len(packed.prompts)) == ([1], 1.0, 16)


def test_demonstrations_before_a_chat_are_earlier_turns(tmp_path):
    turns = [[("system", "Be brief."), ("user", q), ("assistant", a)] for q, a in (("one", "1"), ("two", "2"))]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in turns]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = resolve(Task(name="chat", test="chat.jsonl", kind="generate"), tmp_path)
    first, second = asked(task, tmp_path)
    settings = Demonstrations(instruction="Count.")
    packed = pack(second, [first], settings, as_chat=True)
    assert packed.messages == (
        Message("system", "Be brief."),
        Message("user", "Count.\n\none"),
        Message("assistant", "1"),
        Message("user", "two"),
        Message("assistant", "2"),
    )
    chatml = byte_level(chat_template=CHATML)
    text = chatml.decode(encode_prompts([packed], chatml, "causal", task)[0])
    assert text.index("one") < text.index("1<") < text.index("two") and text.count("system") == 1
    assert "2<" not in text
    plain = pack(second, [first], settings, as_chat=False)
    assert plain_prompt(plain) == (
        "Count.\n\nSystem: Be brief.\nUser: one\nAssistant: 1\n\nSystem: Be brief.\nUser: two\nAssistant:"
    )


def test_a_plain_task_can_be_asked_as_a_chat(tmp_path, chain):
    task = task_of(tmp_path, solved(1), solved(2), chat="always")
    backbone = chain({}, positions=400)
    backbone.tokenizer = byte_level(chat_template=CHATML)
    (row,) = with_demonstrations(backbone, task, asked(task, tmp_path), tmp_path, ScoreConfig(shots=1)).rows
    assert [(turn.role, turn.content) for turn in row.messages] == [
        ("user", "Q1"), ("assistant", "a1"), ("user", "Q2"), ("assistant", "a2"),
    ]  # fmt: skip


@pytest.mark.parametrize(("positions", "kept"), [(28, 4), (27, 3), (9, 0)])
def test_whole_demonstrations_are_dropped_from_the_front(chain, tmp_path, caplog, positions, kept):
    # "Q1 a1" and a separator of one letter take 6 tokens each, the question 2 and the answer 2: 28 for four of them,
    # and the tokenizer puts nothing before a text.
    task = task_of(tmp_path, solved(1, 2, 3, 4), solved(5))
    config = ScoreConfig(shots=4, demonstrations=Demonstrations(separator="\n"))
    backbone = chain({}, positions=positions)
    whole = with_demonstrations(chain({}), task, asked(task, tmp_path), tmp_path, config)
    with caplog.at_level(logging.WARNING, logger="multitune.scoring"):
        packed = with_demonstrations(backbone, task, asked(task, tmp_path), tmp_path, config)
    assert packed.used == [kept]
    assert packed.rows[0].prompt == "\n".join(whole.rows[0].prompt.split("\n")[4 - kept :])
    told = f"letters: {4 - kept} demonstrations before 1 of 1 rows do not fit the model's positions and were dropped."
    assert (told in caplog.messages) == (kept < 4)


def test_a_question_that_is_too_long_by_itself_is_refused(chain, tmp_path):
    task = task_of(tmp_path, solved(1), solved(100))
    with pytest.raises(MultituneError, match="does not fit the model's 5 positions beside an answer of 2") as refused:
        with_demonstrations(chain({}, positions=5), task, asked(task, tmp_path), tmp_path, ScoreConfig(shots=1))
    assert refused.value.where == "test.jsonl:1"


def test_fewer_rows_than_shots_are_told(chain, tmp_path, caplog):
    task = task_of(tmp_path, solved(1, 2), solved(2, 3))
    with caplog.at_level(logging.WARNING, logger="multitune.scoring"):
        packed = with_demonstrations(chain({}), task, asked(task, tmp_path), tmp_path, ScoreConfig(shots=2))
    assert packed.used == [1, 2]
    assert "letters: 1 of 2 rows have fewer than 2 demonstrations to draw." in caplog.messages


def test_scores_say_how_they_were_asked(chain, tmp_path):
    backbone = chain({"X": {"b": 0.6, "d": 0.4}, "b": {"</s>": 1.0}, "d": {"</s>": 1.0}})
    rows = [{"q": q, "a": a} for q, a in (("1", "b"), ("2", "d"))]
    test = [{"q": "3", "a": "b"}, {"q": "4", "a": "d"}]
    task = task_of(tmp_path, rows, test, kind="label", prompt="{{ q }}X\n", choices=("b", "d"))
    config = ScoreConfig(shots=2, demonstrations=Demonstrations(seed=3))
    (score,) = score_tasks(backbone, [task], tmp_path, config, seed=0)
    assert (score.shots, score.shots_used, score.draw_seed, score.normalisation) == (2, 2.0, 3, "none")
    assert score.predictions[0].prompt.endswith("3X\n") and score.predictions[0].prompt.count("X") == 3
    (other,) = score_tasks(backbone, [task], tmp_path, ScoreConfig(shots=2), seed=0)
    (zero,) = score_tasks(backbone, [task], tmp_path, ScoreConfig(), seed=0)
    assert len({score.prompts, other.prompts, zero.prompts}) == 3
    assert (zero.shots, zero.shots_used, zero.predictions[0].prompt) == (0, 0.0, "3X\n")


def test_encoder_decoders_read_demonstrations_in_the_encoder(backbone_of, tmp_path):
    choices = tuple(f"a{i}" for i in range(1, 6))
    task = task_of(tmp_path, solved(1, 2, 3), solved(4, 5), kind="label", choices=choices)
    (score,) = score_tasks(backbone_of("t5"), [task], tmp_path, ScoreConfig(shots=2), seed=0)
    assert score.shots_used == 2.0 and score.predictions[0].prompt.count("Q") == 3


def test_an_encoder_refuses_them(chain, tmp_path):
    backbone = chain({})
    backbone.form = "encoder"
    task = task_of(tmp_path, solved(1), solved(2))
    with pytest.raises(MultituneError, match="An encoder answers by its heads"):
        with_demonstrations(backbone, task, asked(task, tmp_path), tmp_path, ScoreConfig(shots=1))


def test_a_cloze_asks_for_the_last_word(chain, tmp_path):
    rows = [{"text": "the cat sat on the mat"}, {"text": "the sun is hot"}]
    templates = {"prompt": "{{ text.rsplit(' ', 1)[0] }} ____. ->", "target": "{{ text.rsplit(' ', 1)[1] }}"}
    task = task_of(tmp_path, rows[:1], rows[1:], stop=("\n",), **templates)
    backbone = chain({}, positions=99)
    (row,) = with_demonstrations(backbone, task, asked(task, tmp_path), tmp_path, ScoreConfig(shots=1)).rows
    assert (row.prompt, row.target) == ("the cat sat on the ____. -> mat\n\nthe sun is ____. ->", "hot")
