"""YAML with lines, anchors, duplicates and overrides."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.reading import override, read_yaml


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_every_key_knows_its_line(write):
    document = read_yaml(write("a: 1\nb:\n  c: [x, {d: 2}]\n"))
    assert document.data == {"a": 1, "b": {"c": ["x", {"d": 2}]}}
    assert document.lines[("b", "c")] == 3
    assert document.where(("b", "c", 1, "d")).endswith("recipe.yaml:3, b.c.1.d")
    assert document.where(("b", "absent")).endswith("recipe.yaml:2, b.absent")


def test_duplicate_keys_are_refused_all_at_once(write):
    with pytest.raises(MultituneErrors) as error:
        read_yaml(write("tasks:\n  a: 1\n  a: 2\nseed: 0\nseed: 1\n"))
    assert [e.what for e in error.value.errors] == ["The key 'a' stands twice.", "The key 'seed' stands twice."]
    assert "recipe.yaml:3" in error.value.errors[0].where


def test_an_anchor_may_be_overridden(write):
    document = read_yaml(write("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3\n"))
    assert document.data["b"] == {"p": 1, "q": 3}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1", "not YAML"),
        ("- 1\n", "not a mapping"),
        ("", "not a mapping"),
        ("a: !!python/object:os.system x", "not YAML"),
    ],
)
def test_what_is_no_recipe_is_told(write, text, what):
    with pytest.raises(MultituneError, match=what):
        read_yaml(write(text))


def test_a_missing_file_suggests_its_neighbour(write):
    path = write("a: 1")
    with pytest.raises(MultituneError, match=r"Did you mean 'recipe.yaml'"):
        read_yaml(path.with_name("recipes.yaml"))


def test_overrides_reach_every_depth_and_lists(write):
    document = read_yaml(write("a: {b: [1, {c: 2}]}\nmodel: tiny\n"))
    override(document, ["a.b.1.c=0.5", "a.b.0=[x, y]", "seed=3", "model.dtype=float32", "new.key=true"])
    assert document.data == {
        "a": {"b": [["x", "y"], {"c": 0.5}]},
        "model": {"name": "tiny", "dtype": "float32"},
        "seed": 3,
        "new": {"key": True},
    }


@pytest.mark.parametrize("assignment", ["seed", "=1", "a.b.7=1", "a.b.x=1", "seed=[1"])
def test_impossible_overrides_are_refused(write, assignment):
    document = read_yaml(write("a: {b: [1]}\n"))
    with pytest.raises(MultituneErrors):
        override(document, [assignment])
