"""Suites: named tasks from YAML, with every mistake told by line and key."""

from __future__ import annotations

import textwrap

import pytest

from multitune.errors import MultituneError, MultituneErrors
from multitune.tasks.sources import source_files
from multitune.tasks.suite import Suite, load_suite


@pytest.fixture
def load(tmp_path):
    def load(text, folder=None):
        path = tmp_path / "suites" / "suite.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return load_suite(path, folder)

    return load


def test_tasks_have_their_names_and_roles(load):
    suite = load(
        """
        tasks:
          copy: {train: copy.jsonl, test: {fraction: 0.1}}
          rank: {train: rank.jsonl, test: rank.jsonl, held_out: true}
          sort: {test: {generator: "synthetic:sort_words"}}
        """
    )
    assert list(suite.tasks) == ["copy", "rank", "sort"]
    assert [task.name for task in suite.training] == ["copy"]
    assert [task.name for task in suite.held_out] == ["rank", "sort"]


def test_paths_start_at_the_suite_wherever_the_recipe_lies(load, tmp_path):
    (tmp_path / "suites" / "data").mkdir(parents=True)
    (tmp_path / "suites" / "data" / "a.jsonl").write_text("{}\n")
    (tmp_path / "recipes").mkdir()
    suite = load("tasks: {a: {train: data/a.jsonl, test: {fraction: 0.1}}}", tmp_path / "recipes")
    assert suite.tasks["a"].train.path == "../suites/data/a.jsonl"
    assert suite.tasks["a"].test.fraction == 0.1
    (found,) = source_files(suite.tasks["a"].train, tmp_path / "recipes")
    assert found.resolve() == (tmp_path / "suites" / "data" / "a.jsonl").resolve()


def test_all_mistakes_are_told_at_once(load):
    with pytest.raises(MultituneErrors) as error:
        load(
            """\
            tasks:
              a:
                trian: a.jsonl
              b:
                train: {path: b.jsonl, row: 3}
                kind: rank
              c:
                test: {fraction: 0.1}
            """
        )
    told = [(one.where.partition("suite.yaml:")[2], one.what) for one in error.value.errors]
    assert told == [
        ("3: tasks.a.trian", "'trian' is no key here. Did you mean 'train'?"),
        ("5: tasks.b.train.row", "'row' is no key here. Did you mean 'rows'?"),
        ("6: tasks.b.kind", "Input should be 'label', 'choose', 'generate' or 'regress'."),
        ("7: tasks.c", "Fraction cuts rows from train, and the task has no train."),
    ]
    assert "path, hub, name" in error.value.errors[1].mend


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("tasks:\n  a: {train: x}\n  b: {train: x}\n  a: {train: y}\n", "'a' stands here a second time", ":4: tasks.a"),
        ("tasks:\n  a: {train: x, train: y}\n", "the first is on line 2", ":2: tasks.a.train"),
        ("tasks:\n  a: {train: x\n", "not valid YAML", ":3"),
        ("- a\n", "no mapping", ":1"),
        ("", "no mapping", ":1"),
        ("tasks: {}\n", "no tasks", ": tasks"),
        ("task: {}\n", "'task' is no key here. Did you mean 'tasks'?", ":1: task"),
        ("tasks: [a]\n", "valid dictionary", ":1: tasks"),
        ("tasks:\n  a: 3\n", "valid dictionary", ":2: tasks.a"),
        ("tasks:\n  a: {name: b, train: x}\n", "calls itself 'b'", ":1"),
        ("tasks: !!python/object/apply:os.system [echo]\n", "constructor", ":1"),
    ],
)
def test_a_broken_suite_is_refused_with_its_line(load, text, what, where):
    with pytest.raises(MultituneError) as error:
        load(text)
    assert what in str(error.value)
    assert where in str(error.value)


def test_a_missing_suite_is_refused(tmp_path):
    with pytest.raises(MultituneError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")


def test_a_suite_is_made_in_python_too():
    assert Suite(tasks={"a": {"train": "a.jsonl"}}).tasks["a"].name == "a"
