"""Layouts: each is recognised by its fields, said aloud, and gives way to the user's own templates."""

from __future__ import annotations

import logging

import pytest

from multitune.errors import MultituneError
from multitune.tasks.layouts import recognise
from multitune.tasks.prompting import prompted_examples, resolve
from multitune.tasks.task import Example, Message, Task


def recognised(rows, **settings) -> Task:
    examples = [Example(f"a:{number}", f"a.jsonl:{number}", row) for number, row in enumerate(rows, start=1)]
    return recognise(Task(name="a", **settings), examples)


def first(write_rows, tmp_path, row, **settings):
    write_rows("a.jsonl", [row])
    return next(prompted_examples(Task(name="a", train="a.jsonl", **settings), "train", tmp_path))


CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SHAREGPT = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize(
    ("row", "layout", "kind"),
    [
        ({"messages": CHAT}, "messages", "generate"),
        ({"conversations": CHAT}, "messages", "generate"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "messages", "generate"),
        ({"conversations": SHAREGPT}, "sharegpt", "generate"),
        ({"conversation": SHAREGPT}, "sharegpt", "generate"),
        ({"instruction": "I", "input": "X", "output": "A"}, "alpaca", "generate"),
        ({"instruction": "I", "output": "A"}, "alpaca", "generate"),
        ({"prompt": "Q", "completion": "A"}, "prompt_completion", "generate"),
        ({"prompt": "Q", "response": "A"}, "prompt_completion", "generate"),
        ({"input": "Q", "target": "A"}, "input_target", "generate"),
        ({"inputs": "Q", "targets": "A"}, "input_target", "generate"),
        ({"input": "Q", "output": "A"}, "input_target", "generate"),
        ({"question": "Q", "answer": "A"}, "input_target", "generate"),
        ({"text": "Q", "label": "A"}, "text_label", "label"),
        ({"text": "Q", "label": 1}, "text_label", "label"),
        ({"text": "Q", "label": "1.0"}, "text_label", "label"),
        ({"text": "Q", "label": 1.5}, "text_label", "regress"),
        ({"text": "Q", "label": "2.5e-1"}, "text_label", "regress"),
        ({"question": "Q", "answer": "A", "choices": ["A", "B"]}, "input_target", "choose"),
        ({"question": "Q", "answer": "C", "choices": ["A", "B"]}, "input_target", "generate"),
    ],
)
def test_a_layout_is_recognised_by_its_fields(row, layout, kind):
    task = recognised([row])
    assert (task.layout, task.kind) == (layout, kind)
    assert recognise(task, [Example("a:1", "a.jsonl:1", row)]) == task


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"prompt": "Q", "completion": "A"}, "Q", "A"),
        ({"inputs": "Q", "targets": "A"}, "Q", "A"),
        ({"question": "Q", "answer": "A"}, "Q", "A"),
        ({"text": "Q", "label": "A"}, "Q", "A"),
        (
            {"instruction": "I", "input": "X", "output": "A"},
            "### Instruction:\nI\n\n### Input:\nX\n\n### Response:\n",
            "A",
        ),
        ({"instruction": "I", "input": "", "output": "A"}, "### Instruction:\nI\n\n### Response:\n", "A"),
        ({"instruction": "I", "output": "A"}, "### Instruction:\nI\n\n### Response:\n", "A"),
    ],
)
def test_a_layout_gives_prompt_and_target(write_rows, tmp_path, row, prompt, target):
    example = first(write_rows, tmp_path, row)
    assert (example.prompt, example.target, example.messages) == (prompt, target, ())


def test_alpaca_leaves_the_marks_to_a_chat_template(write_rows, tmp_path):
    row = {"instruction": "I", "input": "X", "output": "A"}
    assert first(write_rows, tmp_path, row, chat="always").prompt == "I\n\nX"


@pytest.mark.parametrize("row", [{"messages": CHAT}, {"conversations": SHAREGPT}])
def test_chats_give_messages_that_end_with_the_target(write_rows, tmp_path, row):
    example = first(write_rows, tmp_path, row)
    assert example.messages == (Message("user", "Q"), Message("assistant", "A"))
    assert (example.prompt, example.target) == ("", "A")


def test_chats_keep_system_tools_and_parts(write_rows, tmp_path):
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Q1 "}, {"type": "text", "text": "Q2"}]},
        {"role": "assistant", "content": "call"},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "A"},
    ]
    example = first(write_rows, tmp_path, {"system": "be kind", "messages": turns})
    assert example.messages == (
        Message("system", "be kind"),
        Message("user", "Q1 Q2"),
        Message("assistant", "call"),
        Message("tool", "result"),
        Message("assistant", "A"),
    )


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "the chat has no turns"),
        ([*CHAT, CHAT[0]], "the last turn is of role 'user'"),
        ([{"role": "robot", "content": "A"}], "turn 1 is of the unknown role 'robot'"),
        ([CHAT[0], {"role": "assistant"}], "turn 2 has no 'role' and 'content'"),
        ([CHAT[0], "A"], "turn 2 has no 'role' and 'content'"),
        ([CHAT[0], {"role": "assistant", "content": None}], "the content of turn 2 is not text"),
        ([CHAT[0], {"role": "assistant", "content": [{"type": "image"}]}], "the content of turn 2 is not text"),
        ([CHAT[0], {"role": "assistant", "content": " "}], "the target is empty"),
    ],
)
def test_broken_chats_are_bad_rows(write_rows, tmp_path, turns, reason):
    write_rows("a.jsonl", [{"messages": CHAT}, {"messages": turns}])
    with pytest.raises(MultituneError, match=f"a.jsonl:2: {reason}"):
        list(prompted_examples(Task(name="a", train="a.jsonl"), "train", tmp_path))


def test_own_templates_win_over_the_layout():
    row = {"text": "Q", "label": "A"}
    own = recognised([row], prompt="Say: {{ text }}", target="{{ label | upper }}")
    assert (own.layout, own.prompt, own.target) == ("fields", ("Say: {{ text }}",), ("{{ label | upper }}",))
    half = recognised([row], prompt=["1 {{ text }}", "2 {{ text }}"])
    assert (half.layout, half.target) == ("text_label", ("{{ label }}", "{{ label }}"))
    assert recognised([row], target=" {{ label }}").prompt == ("{{ text }}",)
    shared = recognised([row], prompt=["1 {{ text }}", "2 {{ text }}"], target="{{ label }}")
    assert shared.target == ("{{ label }}",) * 2


def test_a_named_layout_is_taken_or_refused():
    row = {"instruction": "I", "input": "X", "output": "A"}
    assert recognised([row], layout="input_target").prompt == ("{{ input }}",)
    with pytest.raises(MultituneError, match="not of layout sharegpt; they have: instruction, input, output"):
        recognised([row], layout="sharegpt")
    with pytest.raises(MultituneError, match="The layout of task 'a' is not recognised; its rows have: en, fr"):
        recognised([{"en": "Q", "fr": "A"}])


def test_a_template_field_that_no_row_has_is_refused_with_the_nearest():
    rows = [{"text": "Q", "label": "A"}, {"text": "Q", "label": "A", "source": "S"}]
    assert recognised(rows, prompt="{{ text }}{{ source }}").kind == "label"  # one of them has it
    with pytest.raises(MultituneError, match=r"'lable' that no row has\. Did you mean 'label'") as error:
        recognised(rows, target="{{ lable }}")
    assert error.value.where == "tasks.a.target"
    assert error.value.mend == "The rows have: text, label, source."


def test_what_is_inferred_is_said_in_one_line(write_rows, tmp_path, caplog):
    write_rows("a.jsonl", [{"text": "Q", "label": label} for label in "bab"])
    with caplog.at_level(logging.INFO, "multitune.tasks"):
        resolve(Task(name="mood", train="a.jsonl"), tmp_path)
        settled = {"kind": "label", "prompt": "{{ text }}", "target": "{{ label }}", "choices": ["a", "b"]}
        resolve(Task(name="settled", train="a.jsonl", **settled), tmp_path)
    assert [record.message for record in caplog.records] == [
        "task mood: layout text_label; prompt '{{ text }}'; target '{{ label }}'; kind label; 2 choices: a (1), b (2)"
    ]
