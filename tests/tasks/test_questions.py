"""Rows without an answer are asked as rows with one."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneError
from multitune.tasks.bad_rows import BadRows
from multitune.tasks.questions import questions
from multitune.tasks.task import Example, Task


def asked(task: Task, *rows: dict):
    bad_rows = BadRows()
    examples = [Example(f"row:{i}", f"row {i}", row) for i, row in enumerate(rows, start=1)]
    return list(questions(task, examples, bad_rows)), bad_rows


def test_the_answer_of_a_row_is_not_looked_at():
    task = Task(name="t", kind="label", prompt="{{ text }}:", target="{{ label }}", choices=("no", "yes"))
    rows, bad_rows = asked(task, {"text": "a"}, {"text": "b", "label": "perhaps"})
    assert [(row.prompt, row.choices, row.target) for row in rows] == [
        ("a:", ("no", "yes"), ""),
        ("b:", ("no", "yes"), ""),
    ]
    assert bad_rows.count == 0


def test_choices_of_the_row():
    task = Task(name="t", kind="choose", prompt="{{ q }}", target="{{ a }}", choices="options")
    rows, bad_rows = asked(task, {"q": "?", "options": ["x", "y"]}, {"q": "?", "options": ["x", "x"]})
    assert [row.choices for row in rows] == [("x", "y")]
    assert bad_rows.first == [("row 2", "a choice of the row is empty or occurs twice")]


def test_a_row_without_the_prompts_field_is_counted():
    task = Task(name="t", kind="generate", prompt="{{ text }}", target="{{ answer }}")
    rows, bad_rows = asked(task, {"body": "a"}, {"text": "b"})
    assert [row.prompt for row in rows] == ["b"]
    assert bad_rows.count == 1


@pytest.mark.parametrize("more", [[], [{"role": "assistant", "content": "known"}]])
def test_a_chat_ends_with_the_question(more):
    task = Task(name="t", kind="generate", layout="messages")
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    rows, _ = asked(task, {"messages": [*turns, *more]})
    assert [(turn.role, turn.content) for turn in rows[0].messages] == [
        ("system", "Be kind."),
        ("user", "Hello?"),
        ("assistant", ""),
    ]


def test_what_is_left_open_is_refused():
    with pytest.raises(MultituneError, match="does not say how its rows are asked"):
        asked(Task(name="t"), {"text": "a"})
