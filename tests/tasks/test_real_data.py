"""Real data sets as they lie on disk: recognised, split and prompted without a word of configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multitune.tasks.metrics import metric
from multitune.tasks.prompting import prompted_examples, resolve
from multitune.tasks.task import Task

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is absent")


def read(task: Task, split: str) -> list:
    return list(prompted_examples(task, split, DATA))


@pytest.mark.parametrize(
    ("name", "train", "test", "choices"), [("sst2", 6920, 1821, 2), ("clinc150", 15000, 4500, 150)]
)
def test_text_and_label(name, train, test, choices):
    task = resolve(Task(name=name, train=f"{name}/train.jsonl", test=f"{name}/test.jsonl"), DATA)
    assert (task.layout, task.kind, len(task.choices)) == ("text_label", "label", choices)
    for split, rows in (("train", train), ("test", test)):
        found = read(task, split)
        assert len(found) == rows
        assert all(p.target == p.choices[p.label] == p.example.fields["label"] for p in found)


def test_word_problems_with_their_answers():
    task = resolve(Task(name="gsm8k", test="gsm8k/test.jsonl", metrics="numeric_match"), DATA)
    found = read(task, "test")
    assert (task.layout, task.kind, len(found)) == ("input_target", "generate", 1319)
    answers = [p.target.rpartition("####")[2] for p in found]
    assert metric("numeric_match").score(answers, [p.target for p in found]) == 1


def test_every_task_of_the_instruction_suite():
    lines = [json.loads(line) for line in (DATA / "superni" / "tasks.jsonl").read_text().splitlines()]
    assert len(lines) > 50
    for line in lines:
        folder = f"superni/{line['task']}"
        task = Task(
            name=line["task"],
            train=f"{folder}/train.jsonl",
            test=f"{folder}/test.jsonl",
            prompt='{{ "' + line["definition"].replace("\\", "\\\\").replace('"', '\\"') + '" }}\n\n{{ input }}\n',
            target="{{ output }}",
        )
        task = resolve(task, DATA)
        found = read(task, "test")
        assert 0 < len(found) <= 100
        assert all(p.prompt.startswith(line["definition"][:20]) and p.prompt.endswith("\n") for p in found)
