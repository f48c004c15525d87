"""Forecasts of what a training will take: peak memory, and time on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from multitune.objectives.balancing.config import WatchesValidation
from multitune.training.config import TrainingConfig

if TYPE_CHECKING:
    from multitune.models.loading import ModelFacts


def forecast_memory(facts: ModelFacts, trainable: int | None, positions: int, apart: int = 0) -> int:
    """Forecast peak bytes: weights, 12 per trainable parameter (gradient, two Adam moments in float32), activations.

    A balancer of gradients keeps those of so many tasks ``apart``: 4 more per trainable parameter and task.

    Activations are about 34 bytes per position, layer and unit of width in 16 bits, twice that in float32 (Korthikanti
    et al., arXiv:2205.05198, equation 2, without the attention matrix).
    """
    width = 2 if facts.dtype == "float32" else 1
    activations = 34 * width * positions * facts.hidden_size * facts.layers
    return facts.bytes + (12 + 4 * apart) * (facts.parameters if trainable is None else trainable) + activations


def forecast_seconds(
    facts: ModelFacts, trainable: int | None, positions: int, passes: tuple[float, float] = (1.0, 1.0)
) -> float:
    """Forecast seconds: 6 operations per parameter and position (4 when the base is frozen) at the measured rate.

    The rate is that of a matrix product of the model's width on the device that would train; real kernels reach
    perhaps half of it on small models, so take the forecast as the right order of magnitude.

    Args:
        facts: of the model.
        trainable: parameters that train; None when only the weights can tell.
        positions: tokens and padding of the whole training.
        passes: forward and backward passes per step, see ``passes_per_step``; a forward pass takes 2 of the operations,
            a backward pass the others.
    """
    backward = 2 if trainable is not None and trainable < facts.parameters / 2 else 4
    operations = 2 * passes[0] + backward * passes[1]
    return operations * facts.parameters * positions / matrix_rate(facts.hidden_size)


def passes_per_step(config: TrainingConfig, tasks: int, compared: int = 1) -> tuple[float, float]:
    """Return how many forward and backward passes over a batch an optimiser step takes.

    One of each; with a balancer also the validation rows that it looks at, the same batch once more where it or the
    focal loss of tasks needs the losses before or after the step, or one backward pass per task.

    Args:
        config: of the training.
        tasks: number of tasks; a task alone is not balanced.
        compared: passes of which one loss is made (`AdaptationConfig.passes`).
    """
    forward, backward = float(compared), float(compared)
    balancer = config.balancer if tasks > 1 else None
    if config.focal and config.focal.level == "task":
        forward += 1
    if balancer is None:
        return forward, backward
    if balancer.needs_gradients:
        backward *= tasks
    if isinstance(balancer, WatchesValidation):
        if balancer.needs_validation:
            forward += tasks * balancer.validation_rows / config.batch_size / balancer.update_interval
        else:  # FAMO: the training batch before the step, and after it where it looks
            forward += 1 / balancer.update_interval
    if balancer.method == "famo":
        forward += 1
    return forward, backward


def matrix_rate(width: int) -> float:
    """Measure floating-point operations per second of [2048, width] x [width, 4 width] products, for ~50 ms."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a = torch.ones(2048, width, device=device, dtype=dtype)
    b = torch.ones(width, 4 * width, device=device, dtype=dtype)
    a @ b
    rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.05:
        c = a @ b
        rounds += 1
    c[0, 0].item()  # waits for the device
    return rounds * 2 * 2048 * width * 4 * width / (time.perf_counter() - started)
