"""What a task may say, and the contradictions that are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from multitune.tasks.task import Source, Task


def test_a_plain_string_is_a_path_and_a_single_template_stands_for_several():
    task = Task(
        name="a", train="data/a.jsonl", prompt="{{ text }}", target="{{ label }}", stop="\n", metrics="accuracy"
    )
    assert task.train == Source(path="data/a.jsonl")
    assert (task.prompt, task.target, task.stop) == (("{{ text }}",), ("{{ label }}",), ("\n",))
    assert task.metrics == ("accuracy",)
    assert [task.source(split) for split in ("train", "validation", "test")] == [task.train, None, None]


def test_choices_are_text_as_a_template_prints_it():
    assert Task(name="a", choices=[0, 1, " two "]).choices == ("0", "1", "two")
    assert Task(name="a", choices={0: "bad", 1: "good"}).choices == {"0": "bad", "1": "good"}
    assert Task(name="a", choices={1: "bad", 2: "bad", 3: "good"}).choice_texts == ("bad", "good")
    assert Task(name="a", choices="options").choice_texts == ()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train": {}}, "exactly one of path, hub, generator and fraction, and has none"),
        ({"train": {"path": "a", "hub": "b"}}, "has path and hub"),
        ({"train": {"path": "a", "paht": "b"}}, "Extra inputs are not permitted"),
        ({"train": {"path": "a", "rows": 0}}, "greater than 0"),
        ({"test": {"fraction": 0.1}}, "has no train"),
        ({"train": {"fraction": 0.1}}, "train needs a path"),
        ({"train": "a", "test": {"fraction": 0.5}, "validation": {"fraction": 0.5}}, "leave nothing to train on"),
        ({"train": "a", "test": {"fraction": 1.5}}, "less than 1"),
        ({"prompt": ["a", "b", "c"], "target": ["a", "b"]}, "3 prompts do not go with 2 targets"),
        ({"layout": "messages", "prompt": "a"}, "take no prompt"),
        ({"kind": "generate", "choices": ["a", "b"]}, "not generate"),
        ({"kind": "label", "choices": "options"}, "for a field use choose"),
        ({"kind": "choose", "choices": ["a", "b"]}, "use kind label"),
        ({"choices": ["a", "a"]}, "listed twice"),
        ({"choices": ["a", " "]}, "empty"),
        ({"choices": []}, "empty"),
        ({"choices": [True, False]}, "write it in quotes"),
        ({"name": "../a"}, "pattern"),
        ({"weight": -1}, "greater than or equal to 0"),
        ({"kind": "rank"}, "'label', 'choose', 'generate' or 'regress'"),
    ],
)
def test_contradictions_are_refused_with_the_reason(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        Task(**{"name": "a", **settings})


def test_the_room_loads_nothing_heavy():
    heavy = "('torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'scipy', 'sacrebleu', 'jinja2', 'yaml')"
    code = f"import sys, multitune.tasks; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
