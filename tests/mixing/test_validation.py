"""Validation micro-batches: every task in each, every row once per pass, a function of the seed and the step alone."""

from __future__ import annotations

import pytest
import torch

from multitune.mixing.validation import single_pass, validation_batches

LENGTHS = {"a": [3, 5, 2, 9, 4, 7, 1, 6, 2, 8], "b": [10, 4, 16]}


@pytest.fixture
def tables(toy_table):
    return [toy_table("a", 1, LENGTHS["a"], "causal"), toy_table("b", 100, LENGTHS["b"], "causal")]


def batches_of(tables, steps=5, rows_per_task=2, pack=True, seed=0):
    return validation_batches(
        tables,
        steps=steps,
        rows_per_task=rows_per_task,
        form="causal",
        pack=pack,
        row_length=20,
        pad_token_id=0,
        seed=seed,
    )


def rows_in(batch):
    """(task, row) of every example of a micro-batch, by its ids."""
    found = []
    for example in torch.unique(batch["example_ids"][batch["example_ids"] >= 0]).tolist():
        own = batch["example_ids"] == example
        task, token = int(batch["task_ids"][own][0]), int(batch["input_ids"][own][0])
        found.append((task, token // (1, 100)[task] - 1))
        assert int(own.sum()) == list(LENGTHS.values())[task][found[-1][1]]  # whole
    return found


@pytest.mark.parametrize("pack", [True, False])
def test_every_step_has_as_many_rows_of_every_task_and_a_pass_sees_each_row_once(tables, pack):
    batches = batches_of(tables, pack=pack)
    assert len(batches) == 5
    seen = [rows_in(batches[step]) for step in range(5)]
    assert all([task for task, _ in rows] == [0, 0, 1, 1] for rows in seen)
    rows_of_a = [row for rows in seen for task, row in rows if task == 0]
    assert sorted(rows_of_a) == list(range(10))
    rows_of_b = [row for rows in seen for task, row in rows if task == 1]
    assert [sorted(rows_of_b[start : start + 3]) for start in (0, 3, 6)] == [[0, 1, 2]] * 3


def test_packed_rows_hold_several_examples_and_never_more_than_a_row(tables):
    packed, single = batches_of(tables), batches_of(tables, pack=False)
    assert all(batch["input_ids"].shape[1] <= 20 for batch in packed)
    assert sum(len(batch["input_ids"]) for batch in packed) < sum(len(batch["input_ids"]) for batch in single) == 20


def test_a_step_does_not_depend_on_how_many_there_are_but_on_the_seed(tables):
    few, many = batches_of(tables, steps=2), batches_of(tables, steps=9)
    assert all(rows_in(few[step]) == rows_in(many[step]) for step in range(2))
    other = batches_of(tables, steps=9, seed=1)
    assert [rows_in(batch) for batch in many] != [rows_in(batch) for batch in other]


def pass_over(tables, rows_per_task=None, seed=0):
    return single_pass(
        tables,
        rows_per_task=rows_per_task,
        rows_per_batch=4,
        form="causal",
        row_length=20,
        pad_token_id=0,
        seed=seed,
    )


def test_a_single_pass_holds_every_row_once(tables):
    batches = pass_over(tables)
    found = sorted(row for batch in batches for row in rows_in(batch))
    assert found == [(0, row) for row in range(10)] + [(1, row) for row in range(3)]
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 4, 1]


def test_a_single_pass_over_some_rows_draws_them_by_the_seed(tables):
    drawn = [sorted(row for batch in pass_over(tables, 4, seed) for row in rows_in(batch)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [task for task, _ in drawn[0]] == [0] * 4 + [1] * 3  # b has three rows in all
    assert len(set(drawn[0])) == 7
