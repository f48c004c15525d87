from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.mixing.packing import Rows, best_fit_decreasing, plan_packing

lengths_and_capacity = st.integers(1, 64).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(1, capacity), max_size=300).map(lambda lengths: np.array(lengths, dtype=np.int64)),
        st.just(capacity),
    )
)


def test_the_worked_example_of_the_packing_card():
    lengths = np.array([5, 2, 3, 1, 4])
    rows = [lengths[row].tolist() for row in best_fit_decreasing(lengths, 6)]
    assert rows == [[5, 1], [4, 2], [3]]


def slow_best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """Number of examples placed per free space, by the definition of the algorithm."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in free if space >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(capacity - length)
    return sorted(free)


@given(lengths_and_capacity)
def test_best_fit_agrees_with_its_definition(given_lengths):
    lengths, capacity = given_lengths
    rows = best_fit_decreasing(lengths, capacity)
    free = sorted(capacity - int(lengths[row].sum()) for row in rows)
    assert free == slow_best_fit_decreasing(lengths.tolist(), capacity)
    assert all(len(row) for row in rows)
    assert all((np.diff(lengths[row]) <= 0).all() for row in rows)  # placement order is longest first


def check_rows(rows: Rows, lengths: np.ndarray, capacity: int) -> None:
    np.testing.assert_array_equal(np.sort(rows.examples), np.arange(len(lengths)))
    sums = [int(lengths[rows[row]].sum()) for row in range(len(rows))]
    assert sum(sums) == lengths.sum()
    assert all(0 < total <= capacity for total in sums)


@given(lengths_and_capacity, st.integers(0, 10), st.sampled_from([1, 7, 50, 4096]))
def test_every_example_is_in_exactly_one_row_and_no_row_overflows(given_lengths, seed, window):
    lengths, capacity = given_lengths
    rows = plan_packing(lengths, capacity, seed, window)
    check_rows(rows, lengths, capacity)
    again = plan_packing(lengths, capacity, seed, window)
    np.testing.assert_array_equal(rows.examples, again.examples)
    np.testing.assert_array_equal(rows.offsets, again.offsets)


@given(lengths_and_capacity, st.sampled_from([5, 50]))
def test_no_example_leaves_its_window_by_more_than_one(given_lengths, window):
    lengths, capacity = given_lengths
    rows = plan_packing(lengths, capacity, 0, window)
    if len(lengths):
        for row in range(len(rows)):
            windows = rows[row] // window
            assert windows.max() - windows.min() <= 1


@given(lengths_and_capacity)
def test_examples_that_follow_do_not_change_the_rows_before_them(given_lengths):
    lengths, capacity = given_lengths
    settled = 10 * (
        len(lengths) // 10 - 1
    )  # the last whole window may be flushed in one stream and carried in the other

    def settled_rows(rows: Rows) -> list[list[int]]:
        return [rows[row].tolist() for row in range(len(rows)) if rows[row].max() < settled]

    longer = np.append(lengths, [1] * 20)
    rows, more_rows = (plan_packing(stream, capacity, 0, window=10) for stream in (lengths, longer))
    assert settled_rows(rows) == settled_rows(more_rows)


def test_half_full_rows_are_filled_by_the_next_window_and_the_last_are_flushed():
    # the first window leaves {6} with room for 4; the second brings a 4 and, at the end of the stream, leaves {3}
    rows = plan_packing(np.array([10, 6, 4, 10, 3]), 10, seed=0, window=2)
    assert sorted(sorted(rows[row].tolist()) for row in range(len(rows))) == [[0], [1, 2], [3], [4]]


def test_rows_of_a_window_are_shuffled_by_the_seed():
    lengths = np.arange(1, 201)
    first, second = (plan_packing(lengths, 200, seed) for seed in (0, 1))
    longest_first = [lengths[first[row]].max() for row in range(len(first))]
    assert longest_first != sorted(longest_first, reverse=True)
    assert first.examples.tolist() != second.examples.tolist()
    assert {tuple(first[r]) for r in range(len(first))} == {tuple(second[r]) for r in range(len(second))}


def test_instruction_lengths_fill_more_than_ninety_eight_percent():
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.8, 20_000).astype(int), 5, 2048)
    assert lengths.sum() / (len(plan_packing(lengths, 2048, seed=0)) * 2048) > 0.98


@pytest.mark.parametrize("lengths", [[3, 7, 2], [3, 0, 2]])
def test_lengths_that_cannot_be_packed_are_refused_with_their_place(lengths):
    with pytest.raises(MultituneError, match=f"Example 1 of the stream has {lengths[1]} tokens; a row holds 1 to 6"):
        plan_packing(np.array(lengths), 6, seed=0)
