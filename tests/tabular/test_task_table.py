"""Rows of tasks as a table: what cells mean."""

from __future__ import annotations

import math

import pytest

from multitune.errors import MultituneError
from multitune.tabular.task_table import Column, as_frame, find_columns, target_column
from multitune.tasks.task import Example, Prompted, Task


def rows(**columns: list) -> list[Prompted]:
    examples = [
        Example(f"t.csv:{place}", f"t.csv:{place}", dict(zip(columns, cells, strict=True)))
        for place, cells in enumerate(zip(*columns.values(), strict=True), start=2)
    ]
    return [Prompted(example, 0, "", (), "", (), None, 1.0) for example in examples]


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1", "2.5", "-1e3"], True),
        (["1", "", "NA"], True),
        ([1, None, math.nan], True),
        (["1", "2", "many"], False),
        (["infinite", "info", "x"], False),
        (["inf", "x", "y"], False),
        ([True, False, True], False),
        (["", "", ""], True),
    ],
)
def test_a_column_is_numeric_where_all_its_cells_are(cells, numeric):
    assert find_columns({"a": rows(x=cells)}, None, ()) == (Column("x", numeric),)


def test_cells_become_numbers_words_and_gaps():
    every = [row.example for row in rows(x=["1", "", "nan"], z=["1.0", "NA", "b"], y=[True, None, 2])]
    frame = as_frame(every, [Column("z", False), Column("x", True), Column("y", False)])
    assert list(frame.columns) == ["z", "x", "y"]
    assert frame["x"].tolist()[0] == 1 and frame["x"].isna().tolist() == [False, True, True]
    assert frame["z"].tolist() == ["1.0", None, "b"]
    assert frame["y"].tolist() == ["True", None, "2"]


@pytest.mark.parametrize("cell", ["inf", "-Infinity", math.inf])
def test_an_infinite_number_is_refused_where_it_stands(cell):
    with pytest.raises(MultituneError, match="'x' holds an infinite number") as caught:
        find_columns({"a": rows(x=["1", "2", cell])}, None, ())
    assert caught.value.where == "t.csv:4"


def test_all_tasks_need_the_columns():
    found = {"a": rows(x=["1"], y=["2"]), "b": rows(x=["1"], z=["2"])}
    with pytest.raises(MultituneError, match="rows of 'a' have no column 'z'"):
        find_columns(found, None, ())
    assert find_columns(found, ["x"], ()) == (Column("x", True),)
    with pytest.raises(MultituneError, match="no column to learn from"):
        find_columns({"a": rows(y=["1"])}, None, {"y"})


@pytest.mark.parametrize(
    ("target", "column"),
    [("{{ y }}", "y"), ("{{y}}", "y"), ("{{ row['net sales'] }}", "net sales"), ('{{ row["a\'b"] }}', "a'b")],
)
def test_a_target_names_its_column(target, column):
    assert target_column(Task(name="a", target=target)) == column


@pytest.mark.parametrize("target", ["y", "{{ y }} euros", "{{ y | int }}", "{{ row.y }}", ("{{ a }}", "{{ b }}"), ()])
def test_other_targets_are_refused(target):
    with pytest.raises(MultituneError, match="task 'a' has"):
        target_column(Task(name="a", target=target))
