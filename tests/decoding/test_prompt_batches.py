"""Batches hold every prompt once, stay within their budget, and pad without touching a token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from multitune.decoding.prompt_batches import (
    UNLIMITED,
    batches_by_length,
    batches_of_one_length,
    context_length,
    fit_prompts,
    pad,
)

LENGTHS = st.lists(st.integers(0, 50), max_size=40).map(lambda values: np.array(values, dtype=np.int64))


@given(LENGTHS, st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = batches_by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


@given(LENGTHS, st.integers(1, 200))
def test_batches_of_one_length_need_no_padding(lengths, budget):
    batches = batches_of_one_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(set(lengths[batch].tolist())) == 1
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_every_token_in_order(side):
    rows = [[5, 6, 7], [8], [9, 10]]
    input_ids, mask = pad(rows, 0, side, torch.device("cpu"))
    assert [row[keep.bool()].tolist() for row, keep in zip(input_ids, mask, strict=True)] == rows
    assert mask[1].tolist() == ([0, 0, 1] if side == "left" else [1, 0, 0])


def test_prompts_are_cut_on_the_left_and_keep_their_first_token():
    prompts = [[1, 2, 3, 4, 5], [1, 2], [], [7, 8, 9, 10]]
    assert fit_prompts(prompts, np.array([3, 3, 3, 2]), filler=0) == [[3, 4, 5], [1, 2], [0], [9, 10]]
    assert fit_prompts(prompts, np.array([3, 3, 3, 2]), filler=0, first_token=1) == [[1, 4, 5], [1, 2], [0], [9, 10]]
    assert fit_prompts([[1, 2]], np.array([1]), filler=0, first_token=1) == [[2]]


def test_positions_are_read_from_the_config(random_backbone):
    assert context_length(random_backbone("llama").model) == 64
    assert context_length(random_backbone("gpt2").model) == 64
    relative = BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2)  # ALiBi: any length
    assert context_length(BloomForCausalLM(relative)) == UNLIMITED
