"""What a recipe may say about training, and what it may not."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from multitune.training.config import TrainingConfig


def test_two_lengths_are_refused():
    with pytest.raises(ValidationError, match="epochs and steps both set the length"):
        TrainingConfig(epochs=1, steps=10)


def test_a_micro_batch_must_divide_the_batch():
    with pytest.raises(ValidationError, match="not a multiple"):
        TrainingConfig(batch_size=10, micro_batch_size=4)


@pytest.mark.parametrize(("batch_size", "rows"), [(32, 8), (6, 6), (7, 7), (11, 1), (1, 1), (12, 6)])
def test_the_default_micro_batch_divides_the_batch(batch_size, rows):
    assert TrainingConfig(batch_size=batch_size).rows_per_forward == rows


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate({"learning_rte": 1e-3})


@pytest.mark.parametrize(
    ("keys", "processes", "rows"),
    [
        ({"batch_size": 32}, 1, 8),
        ({"batch_size": 8}, 2, 4),
        ({"batch_size": 12}, 2, 6),
        ({"batch_size": 8, "micro_batch_size": 8}, 2, 8),  # as given; refused later, with the numbers
        ({"batch_size": 3}, 2, 3),
    ],
)
def test_an_open_micro_batch_size_fits_the_number_of_processes(keys, processes, rows):
    assert TrainingConfig(**keys).shared_by(processes).rows_per_forward == rows
