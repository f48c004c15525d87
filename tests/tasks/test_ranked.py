"""EM@k over ranked answers and the unbiased pass@k."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.tasks.ranked import exact_match_at, pass_at


def test_the_cards_example():
    assert exact_match_at(1, [["a", "b", "c"]], ["b"]).tolist() == [0.0]
    assert exact_match_at(2, [["a", "b", "c"]], ["b"]).tolist() == [1.0]
    assert exact_match_at(1, [[" b\n"]], ["b "]).tolist() == [1.0]
    assert exact_match_at(10, [[]], ["b"]).tolist() == [0.0]


texts = st.sampled_from(["a", "b", "c", " b", "d"])


@given(st.lists(texts, max_size=8), texts, st.data())
def test_it_grows_with_k_and_duplicates_do_not_matter(ranked, reference, data):
    values = [exact_match_at(k, [ranked], [reference])[0] for k in range(1, 10)]
    assert values == sorted(values)
    if ranked:
        place = data.draw(st.integers(0, len(ranked) - 1))
        after = data.draw(st.integers(place, len(ranked)))
        repeated = [*ranked[:after], ranked[place], *ranked[after:]]
        assert [exact_match_at(k, [repeated], [reference])[0] for k in range(1, 10)] == values


def test_the_cards_pass_at_k():
    assert [round(pass_at(k, 5, 2), 12) for k in (1, 2, 5)] == [0.4, 0.7, 1.0]


@given(st.integers(1, 60), st.data())
def test_it_is_one_minus_the_chance_of_k_failures(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at(k, n, c) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-12)


def test_large_numbers_stay_numbers():
    assert pass_at(100, 100_000, 1) == pytest.approx(1e-3)


@pytest.mark.parametrize(("k", "n", "c"), [(0, 5, 1), (6, 5, 1), (1, 5, 6), (1, 5, -1), (1, 0, 0)])
def test_what_is_not_defined_is_refused(k, n, c):
    with pytest.raises(ValueError, match="not defined"):
        pass_at(k, n, c)


def test_ranks_need_a_reference_each():
    with pytest.raises(ValueError, match="do not go with"):
        exact_match_at(1, [["a"]], [])
    with pytest.raises(ValueError, match="k is 0"):
        exact_match_at(0, [["a"]], ["a"])
