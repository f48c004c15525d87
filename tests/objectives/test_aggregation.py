"""The worked batch and the laws of card 20: data-balance losses."""

from __future__ import annotations

import pytest
import torch

from multitune.objectives.aggregation import AGGREGATIONS, count, token_weights

# task a (0): NLLs [1, 2] and [4, 4, 4, 4]; task b (1): [3]
NLL = torch.tensor([1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 3.0])
TASK = torch.tensor([0, 0, 0, 0, 0, 0, 1])
EXAMPLE = torch.tensor([7, 7, 3, 3, 3, 3, 11])


def loss(aggregation, nll=NLL, task=TASK, example=EXAMPLE, weights=(1.0, 1.0), tasks=2):
    counts = count(task, example, tasks)
    return (token_weights(aggregation, task, counts, torch.tensor(weights)) * nll).sum().item()


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [("token_mean", 22 / 7), ("sample_mean", 17 / 6), ("task_token_mean", 37 / 12), ("task_sample_mean", 2.875)],
)
def test_worked_batch(aggregation, value):
    assert loss(aggregation) == pytest.approx(value, abs=1e-6)


def test_user_weights_three_to_one():
    assert loss("task_token_mean", weights=(3.0, 1.0)) == pytest.approx(3.125, abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_scaling_all_weights_changes_nothing(scale):
    assert loss("task_token_mean", weights=(3 * scale, scale)) == pytest.approx(3.125, abs=1e-6)


def test_one_task_present_reduces_to_the_plain_means():
    only_a = slice(0, 6)
    arguments = (NLL[only_a], TASK[only_a], EXAMPLE[only_a])
    assert loss("task_token_mean", *arguments) == pytest.approx(loss("token_mean", *arguments))
    assert loss("task_sample_mean", *arguments) == pytest.approx(loss("sample_mean", *arguments))


def test_equal_lengths_make_token_and_sample_mean_equal():
    example = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    nll, task = NLL[:6], TASK[:6]
    assert loss("token_mean", nll, task, example[:6]) == pytest.approx(loss("sample_mean", nll, task, example[:6]))


def test_an_absent_task_does_not_count_even_when_its_weight_is_large():
    assert loss("task_token_mean", weights=(1.0, 1.0, 50.0), tasks=3) == pytest.approx((19 / 6 + 3) / 2)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_sum_to_one_and_permute_with_tasks(aggregation):
    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 20, (100,), generator=generator)
    task = example % 3
    weights = torch.tensor([0.2, 1.0, 3.0])
    w = token_weights(aggregation, task, count(task, example, 3), weights)
    assert w.sum().item() == pytest.approx(1.0, abs=1e-5)
    permutation = torch.tensor([2, 0, 1])
    inverse = torch.argsort(permutation)
    permuted = token_weights(aggregation, inverse[task], count(inverse[task], example, 3), weights[permutation])
    assert torch.allclose(w, permuted)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_parts_with_reduced_counts_equal_the_whole(aggregation):
    """Two processes that only share [2, T] sums give the value of one process (each example on one process)."""
    parts = [(TASK[:2], EXAMPLE[:2], NLL[:2]), (TASK[2:], EXAMPLE[2:], NLL[2:])]
    sums = []
    for task, example, _ in parts:
        count(task, example, 2, reduce=lambda local: sums.append(local) or local)
    total = sums[0] + sums[1]
    value = 0.0
    for task, example, nll in parts:
        counts = count(task, example, 2, reduce=lambda local: total)
        value += (token_weights(aggregation, task, counts, torch.ones(2)) * nll).sum().item()
    assert value == pytest.approx(loss(aggregation), abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_labelled_gives_no_weights(aggregation):
    empty = torch.zeros(0, dtype=torch.long)
    assert token_weights(aggregation, empty, count(empty, empty, 2), torch.ones(2)).shape == (0,)
