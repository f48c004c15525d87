"""The passes of a step, which the time forecast counts."""

from __future__ import annotations

from typing import Any

import pytest

from multitune.adaptation import AdaptationConfig
from multitune.recipes.forecast import passes_per_step
from multitune.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("keys", "passes"),
    [
        ({}, (1, 1)),
        ({"balancer": "uncertainty"}, (1, 1)),
        ({"balancer": "pcgrad"}, (1, 3)),
        ({"balancer": {"method": "coba", "validation_rows": 4}}, (1 + 3 * 4 / 16, 1)),
        ({"balancer": {"method": "coba", "validation_rows": 4, "update_interval": 2}}, (1 + 3 * 4 / 16 / 2, 1)),
        ({"balancer": {"method": "famo", "validation_rows": 4}}, (1 + 1 + 3 * 4 / 16, 1)),
        ({"balancer": {"method": "famo", "losses": "training"}}, (3, 1)),
        ({"focal": {"level": "sample"}}, (1, 1)),
        ({"focal": {"level": "task"}}, (2, 1)),
    ],
)
def test_passes(keys: dict[str, Any], passes: tuple[float, float]) -> None:
    config = TrainingConfig(aggregation="task_sample_mean", batch_size=16, **keys)
    assert passes_per_step(config, 3) == passes


def test_a_task_alone_is_not_balanced() -> None:
    assert passes_per_step(TrainingConfig(aggregation="task_sample_mean", balancer="pcgrad"), 1) == (1, 1)


def test_a_loss_of_two_passes_takes_both_twice():
    assert passes_per_step(TrainingConfig(), 3, AdaptationConfig(method="adamix").passes) == (2, 2)
    assert passes_per_step(TrainingConfig(), 3, AdaptationConfig(method="adamix", n_modules=1).passes) == (1, 1)
