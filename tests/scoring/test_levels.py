"""Levels of generalisation: which one a task is of, and a mean over categories that no large task outweighs."""

from __future__ import annotations

import pytest

from multitune.scoring.levels import TaskValues, by_level, level_of

TRAINED = {"a1": "a", "b1": "b", "alone": ""}


@pytest.mark.parametrize(
    ("task", "category", "level"),
    [
        ("a1", "a", "held-out examples"),
        ("a2", "a", "held-out tasks"),
        ("c1", "c", "held-out categories"),
        ("alone", "", "held-out examples"),
        ("other", "", "held-out categories"),
    ],
)
def test_the_level_of_a_task(task, category, level):
    assert level_of(task, category, TRAINED) == level
    assert level_of(task, category, {}) == "not trained"


def test_moving_a_task_changes_its_own_level_alone():
    asked = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")]
    before = [level_of(*one, TRAINED) for one in asked]
    after = [level_of(*one, {**TRAINED, "a2": "a"}) for one in asked]
    assert [one for one, (old, new) in enumerate(zip(before, after, strict=True)) if old != new] == [1]


def test_a_level_is_the_mean_over_categories_by_hand():
    """Category x: tasks 1.0 (four answers, two templates of two rows) and 0.5; category y: one task of 0.0."""
    values = [
        TaskValues("x1", "x", "held-out tasks", [1.0, 1.0, 1.0, 1.0]),
        TaskValues("x2", "x", "held-out tasks", [1.0, 0.0]),
        TaskValues("y1", "y", "held-out tasks", [0.0]),
        TaskValues("z1", "z", "held-out categories", [0.25]),
    ]
    lines = by_level(values)
    assert [(one.level, one.category, one.tasks) for one in lines] == [
        ("held-out tasks", "", 3), ("held-out tasks", "x", 2), ("held-out tasks", "y", 1),
        ("held-out categories", "", 1), ("held-out categories", "z", 1),
    ]  # fmt: skip
    assert [one.value for one in lines] == pytest.approx([0.375, 0.75, 0.0, 0.25, 0.25])
    flat = sum(sum(one.scores) for one in values[:3]) / 7
    assert flat != pytest.approx(lines[0].value), "5/7: larger tasks would count more"
    for one in lines:
        assert one.low <= one.value <= one.high
    assert lines[0].low < lines[0].value < lines[0].high


def test_a_task_without_a_category_is_one_of_its_own():
    lines = by_level([TaskValues("a", "", "not trained", [1.0]), TaskValues("b", "", "not trained", [0.0])])
    assert [(one.category, one.value) for one in lines] == [("", 0.5), ("a", 1.0), ("b", 0.0)]


def test_intervals_are_the_seeds_and_a_task_without_answers_is_refused():
    values = [TaskValues("a", "x", "not trained", [0.0, 1.0, 1.0]), TaskValues("b", "x", "not trained", [0.0, 1.0])]
    assert by_level(values, seed=1) == by_level(values, seed=1)
    assert by_level([]) == []
    with pytest.raises(ValueError, match="task a has no answer"):
        by_level([TaskValues("a", "x", "not trained", [])])
