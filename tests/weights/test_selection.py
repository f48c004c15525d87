"""Exact order statistics from chunks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multitune.weights.selection import EVERYTHING, NOTHING, cuts, in_memory, keep_above_, keep_band_

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0**-140, -(2.0**-140), 3e38, 1.0000001, 0.1, -0.1])


def largest(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Return x with all but its ``rank`` largest magnitudes zeroed, of equal ones the first kept: by a full sort."""
    order = np.lexsort((np.arange(len(x)), -x.abs().numpy()))[:rank]
    kept = torch.zeros_like(x)
    kept[order] = x[order]
    return kept


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(1, 17), st.data())
def test_cuts_are_those_of_a_sort_in_any_chunks(values: list[float], chunk: int, data: st.DataObject) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    rank = data.draw(st.integers(0, len(values)))
    ((cut,),) = cuts([in_memory(x[None], chunk)], [[rank]])[0]
    whole = keep_above_(x.clone(), cut, 0)
    assert torch.equal(whole, largest(x, rank))
    pieces = [keep_above_(x[start : start + chunk].clone(), cut, start) for start in range(0, len(x), chunk)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("grid", [0, 50])
def test_many_values_with_and_without_ties(grid: int) -> None:
    x = torch.randn(3, 300_000, generator=torch.Generator().manual_seed(0))
    if grid:
        x = (x * grid).round() / grid
    ranks = [[1, 3000, 299_999], [150_000, 60_000], [0, 300_000]]
    found = cuts([in_memory(x, 4096)], ranks)[0]
    for row, own, own_cuts in zip(x, ranks, found, strict=True):
        for rank, cut in zip(own, own_cuts, strict=True):
            assert torch.equal(keep_above_(row.clone(), cut, 0), largest(row, rank))
    assert found[2] == [NOTHING, EVERYTHING]


def test_a_rank_far_from_what_the_sample_shows_is_found_all_the_same() -> None:
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    x[8 * 4096 :: 16] = 1e-20  # the chunk that is sampled first shows nothing of the rest
    x[8 * 4096 : 9 * 4096] = 1e-20
    for rank in (10, 100_000, 190_000):
        ((cut,),) = cuts([in_memory(x[None], 4096)], [[rank]])[0]
        assert torch.equal(keep_above_(x.clone(), cut, 0), largest(x, rank))


def test_parts_are_one_vector_and_may_be_counted_at_once() -> None:
    x = (torch.randn(2, 50_000, generator=torch.Generator().manual_seed(1)) * 30).round() / 30
    places = [0, 7, 20_000, 20_001, 50_000]
    parts = [in_memory(x[:, first:last], 4096) for first, last in pairwise(places)]
    ranks = [[5000, 20_000], [25_000]]
    found = cuts(parts, ranks)
    for t, own in enumerate(ranks):
        for number, rank in enumerate(own):
            kept = [
                keep_above_(x[t, first:last].clone(), found[part][t][number], 0)
                for part, (first, last) in enumerate(pairwise(places))
            ]
            assert torch.equal(torch.cat(kept), largest(x[t], rank))
    with ThreadPoolExecutor(3) as pool:
        assert cuts(parts, ranks, pool.map) == found


def test_a_band_lies_between_two_cuts() -> None:
    x = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.0])
    ((upper, lower),) = cuts([in_memory(x[None], 2)], [[1, 3]])[0]
    assert keep_band_(x.clone(), upper, lower, 0).tolist() == [0, -4, 3, 0, 0]


def test_not_a_number_stays() -> None:
    x = torch.tensor([float("nan"), 1.0, 2.0])
    ((cut,),) = cuts([in_memory(torch.tensor([[3.0, 1.0, 2.0]]))], [[1]])[0]
    assert keep_above_(x, cut, 0).isnan().tolist() == [True, False, False]
