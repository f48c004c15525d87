"""Plain values as YAML 1.2 has them, and overrides that would silently mean something else."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.reading import Document, override, read_yaml


@pytest.fixture
def document(tmp_path) -> Document:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: tiny\nseed: 1\ntasks:\n  v1.5: {train: a.jsonl, kind: label}\n  b: {train: b.jsonl}\n")
    return read_yaml(path)


def test_plain_values_are_what_they_look_like(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [yes, no, on, 5e-4, 1.0e-3, .5, 010, 12:30, 2020-01-01, ~, null, true, -3, '5']\n1: one\n")
    expected = ["yes", "no", "on", 5e-4, 1e-3, 0.5, "010", "12:30", "2020-01-01", None, None, True, -3, "5"]
    assert read_yaml(path).data == {"a": expected, "1": "one"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: \x01\n", "not YAML"),
        ("a: &x\n  b: *x\n", "contains itself"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{n}: &{n} [{', '.join(['*' + p] * 10)}]\n" for p, n in zip("abcdef", "bcdefg", strict=True)),
            "more than",
        ),
    ],
    ids=["control character", "endless", "exploding"],
)
def test_files_that_would_break_a_reader_are_refused(tmp_path, text, what):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(MultituneError, match=what):
        read_yaml(path)


def test_a_key_with_dots_is_found(document):
    override(document, ["tasks.v1.5.kind=regress", "tasks.v1.5.train.rows=7"])
    assert document.data["tasks"]["v1.5"] == {"train": {"path": "a.jsonl", "rows": 7}, "kind": "regress"}


def test_the_place_of_an_override_is_the_override(document):
    override(document, ["tasks.b.kind=lable"])
    assert document.where(("tasks", "b", "kind")) == "--set tasks.b.kind=lable, tasks.b.kind"
    assert document.where(("tasks", "b", "train")).endswith("recipe.yaml:5, tasks.b.train")


@pytest.mark.parametrize(
    ("assignment", "what"),
    [
        ("tasks.c.kind=label", "There is no 'c' in tasks"),
        ("tasks.bb.kind=label", "Did you mean 'b'"),
        ("seed.x=1", "'seed' is a single value"),
    ],
)
def test_a_misspelt_name_makes_no_new_task(document, assignment, what):
    before = repr(document.data)
    with pytest.raises(MultituneErrors, match=what):
        override(document, [assignment])
    assert repr(document.data) == before


def test_a_length_that_is_set_takes_the_place_of_the_files(document):
    document.data["steps"] = {"joint": {"training": {"epochs": 3, "batch_size": 4}}}
    override(document, ["steps.joint.training.steps=2"])
    assert document.data["steps"]["joint"]["training"] == {"steps": 2, "batch_size": 4}
    override(document, ["steps.joint.training.examples=9"])  # both set by the user: refused later, with both named
    assert document.data["steps"]["joint"]["training"] == {"steps": 2, "examples": 9, "batch_size": 4}


def test_a_new_step_is_set_whole_and_the_mend_says_how(document):
    document.data["steps"] = {"joint": {}}
    with pytest.raises(MultituneErrors) as told:
        override(document, ["steps.alone.tasks=each"])
    assert "--set 'steps.alone={...}'" in told.value.errors[0].mend


def test_a_whole_task_may_be_added(document):
    override(document, ["tasks.c={train: c.jsonl}", "steps.joint.export=merged"])
    assert document.data["tasks"]["c"] == {"train": "c.jsonl"}
    assert document.data["steps"] == {"joint": {"export": "merged"}}
