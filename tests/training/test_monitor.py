"""Per-task bookkeeping: sums over counts, absent tasks, losses that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from multitune.errors import MultituneError
from multitune.objectives.aggregation import count
from multitune.training.monitor import TaskMonitor


def monitor(reduce=None):
    return TaskMonitor(["a", "b", "c"], torch.device("cpu"), reduce)


def test_losses_are_sums_over_counts_across_micro_batches():
    m = monitor()
    task, example = torch.tensor([0, 0, 0, 1]), torch.tensor([5, 5, 6, 9])
    m.count(count(task, example, 3))
    nll, weight = torch.tensor([1.0, 2.0, 6.0, 4.0]), torch.tensor([0.25, 0.25, 0.25, 0.75])
    m.add(nll[:1], weight[:1], task[:1])
    m.add(nll[1:], weight[1:], task[1:])
    sums = m.read()
    assert (sums["a"].loss, sums["a"].tokens, sums["a"].examples) == (3.0, 3, 2)
    assert (sums["b"].loss, sums["b"].tokens, sums["b"].examples) == (4.0, 1, 1)
    assert sums["a"].share == pytest.approx(0.5)
    assert math.isnan(sums["c"].loss)
    assert sums["c"].tokens == 0


def test_reading_starts_anew():
    m = monitor()
    task = torch.tensor([0])
    m.count(count(task, task, 3))
    m.add(torch.ones(1), torch.ones(1), task)
    m.read()
    assert m.read()["a"].tokens == 0


def test_a_memorised_task_with_loss_zero_is_present():
    m = monitor()
    task = torch.tensor([2])
    m.count(count(task, task, 3))
    m.add(torch.zeros(1), torch.ones(1), task)
    sums = m.read()["c"]
    assert (sums.loss, sums.tokens) == (0.0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_task_and_step(value):
    m = monitor()
    m.add(torch.tensor([1.0, value]), torch.ones(2), torch.tensor([0, 1]))
    with pytest.raises(MultituneError, match="loss of b is not a finite number") as error:
        m.refuse_nonfinite(17)
    assert "17" in error.value.where
