"""`multitune suite`, and the table by level that `multitune score` gives of tasks with categories."""

from __future__ import annotations

import json

import pytest
import yaml

from multitune.cli import main
from multitune.models.config import ModelConfig
from multitune.models.loading import load_backbone, load_saved, save_backbone
from multitune.recipes.scoring import tasks_of
from multitune.tasks.task import Task
from tests.cli.conftest import quiet_again

__all__ = ["quiet_again"]


def told(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


@pytest.fixture
def folder(tmp_path):
    """Four official tasks in two categories."""
    place = tmp_path / "official"
    place.mkdir()
    for number, category in enumerate(("Word Analogy", "Word Analogy", "Title Generation", "Title Generation")):
        one = {
            "Definition": ["Do it."], "Categories": [category],
            "Positive Examples": [{"input": "x", "output": "y"}], "Negative Examples": [],
            "Instances": [{"input": f"in {n}", "output": ["one", "two"]} for n in range(130 if number else 30)],
        }  # fmt: skip
        (place / f"task{number}.json").write_text(json.dumps(one))
    return place


def test_a_folder_becomes_a_suite_that_can_be_scored(folder, tmp_path, capsys):
    words = ["suite", folder, "--out", tmp_path / "suite", "--held-out-category", "Title Generation"]
    assert told(*words, "--held-out-task", "task1", "--encoding", "none", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["tasks"], answer["trained"], answer["shared"]) == (4, ["task0"], ["task0"])
    tasks, _ = tasks_of(tmp_path / "suite/suite.yaml")
    assert [(task.name, task.held_out, task.tags["category"]) for task in tasks] == [
        ("task0", False, "Word Analogy"), ("task1", True, "Word Analogy"),
        ("task2", True, "Title Generation"), ("task3", True, "Title Generation"),
    ]  # fmt: skip
    lines = (tmp_path / "suite/data/task1/test.jsonl").read_text().splitlines()
    assert len(lines) == 100
    assert json.loads(lines[0])["references"] == ["one", "two"]

    backbone = load_backbone(ModelConfig(name="tiny"), [])
    backbone.tasks = (Task(name="task0", tags={"category": "Word Analogy"}),)
    save_backbone(backbone, tmp_path / "model", merged=False)
    assert told("score", tmp_path / "model", "--tasks", tmp_path / "suite/suite.yaml", "--rows", 2, "--json") == 0
    levels = json.loads(capsys.readouterr().out)["levels"]
    assert [(one["level"], one["category"], one["tasks"]) for one in levels] == [
        ("held-out examples", "", 1), ("held-out examples", "Word Analogy", 1),
        ("held-out tasks", "", 1), ("held-out tasks", "Word Analogy", 1),
        ("held-out categories", "", 2), ("held-out categories", "Title Generation", 2),
    ]  # fmt: skip
    assert load_saved(tmp_path / "model").tasks[0].name == "task0"


def test_the_table_by_level_stands_below_the_scores(folder, tmp_path, capsys):
    assert told("suite", folder, "--out", tmp_path / "suite", "--encoding", "none") == 0
    out, err = capsys.readouterr()
    assert "4 tasks, 0 held out" in out
    assert "task0: fewer than 120 instances" in err
    tasks = yaml.safe_load((tmp_path / "suite/suite.yaml").read_text())
    tasks["tasks"] = {name: tasks["tasks"][name] for name in ("task0", "task2")}
    (tmp_path / "suite/suite.yaml").write_text(yaml.safe_dump(tasks))
    assert told("score", "tiny", "--tasks", tmp_path / "suite/suite.yaml", "--rows", 1, "--shots", "0,1") == 0
    out = capsys.readouterr().out
    assert out.count("not trained") == 2
    assert "Title Generation" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--held-out-category", "Word Analogi"], "There is no category 'Word Analogi'. Did you mean 'Word Analogy'"),
        (["--held-out-task", "task9"], "There is no task 'task9'"),
        (["--held-out-category", "Word Analogy", "--held-out-task", "task1"], "is held out as a whole"),
        (["--held-out-category", "Word Analogy", "--held-out-category", "Title Generation"], "Every task is held out"),
        (["--encoding", "definitions"], "There is no encoding 'definitions'. Did you mean 'definition'"),
    ],
)
def test_what_cannot_be_held_out_is_told(folder, tmp_path, capsys, words, said):
    assert told("suite", folder, "--out", tmp_path / "suite", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "suite/suite.yaml").exists()


def test_instances_have_to_be_split_before_they_are_scored(folder, capsys):
    assert told("score", "tiny", "--tasks", folder) == 2
    assert "Write it as a suite first" in " ".join(capsys.readouterr().err.split())
