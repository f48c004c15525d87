"""The first steps of a training, laid out without weights: what the plan knows of fill, repeats and shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multitune.recipes.graph import TrainNode
from multitune.recipes.schema import Recipe
from multitune.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np

    from multitune.models.loading import ModelFacts
    from multitune.recipes.plan import TaskStatistics

SIMULATED = 200
"""Optimiser steps whose batches are laid out to find fill and effective shares."""


@dataclass(frozen=True)
class Simulation:
    """What a layout says of the whole training.

    Attributes:
        mixture: per task what is drawn of it.
        steps: optimiser steps.
        fill: share of the positions that hold tokens.
        positions: tokens and padding.
        effective_T: share of each task in the loss, [T].
        warnings: what deserves a second look.
    """

    mixture: list[Any]
    steps: int
    fill: float
    positions: int
    effective_T: np.ndarray
    warnings: list[str]


def simulate(
    node: TrainNode, recipe: Recipe, facts: ModelFacts, tasks: Sequence[Task], found: Sequence[TaskStatistics]
) -> Simulation:
    """Lay out the first SIMULATED steps as training would, with row r of a task as long as its sampled row r mod n."""
    import numpy as np

    from multitune.mixing.mixture import Mixture
    from multitune.mixing.packing import plan_groups, plan_packing
    from multitune.models.packed import known_route
    from multitune.models.packed import packs as packs_rows

    config = node.step.training
    rows = {s.task: s.rows for s in found}
    lengths = [s.lengths for s in found]
    flash = "flash" in (recipe.base.attn_implementation or "")
    route = known_route(facts.family, node.adaptation.method, flash=flash)
    if node.step.soft_prompt is not None:
        route = "unpacked"
    packs = packs_rows(facts.form, config.pack, route, facts.architecture)
    total = examples_drawn(node, rows, [float(length_R.mean()) for length_R in lengths], packs)
    mixture = Mixture(rows, node.step.mixture, recipe.seed, total=total)
    seen = min(total, SIMULATED * config.batch_size * (max(1, config.max_length // 16) if packs else 1))
    draw_N3 = mixture.draw(0, seen)
    length_N = np.empty(seen, dtype=np.int64)
    label_N = np.empty(seen, dtype=np.int64)
    for t, s in enumerate(found):
        here_N = draw_N3[:, 0] == t
        place_n = draw_N3[here_N, 1] % len(s.lengths)
        length_N[here_N], label_N[here_N] = s.lengths[place_n], s.label_counts[place_n]
    if packs:
        plan_rows = plan_packing(length_N, config.max_length, recipe.seed)
        row_of_example = np.repeat(np.arange(len(plan_rows)), np.diff(plan_rows.offsets))
        order, row_count = plan_rows.examples, len(plan_rows)
        positions = row_count * config.max_length
    else:
        groups = plan_groups(length_N, config.rows_per_forward, recipe.seed, config.batch_size)
        order, row_count = groups.examples, seen
        row_of_example = np.arange(seen)
        widths = np.maximum.reduceat(length_N[order], groups.offsets[:-1])
        positions = int((widths * np.diff(groups.offsets)).sum())
    step_N = row_of_example // config.batch_size
    weight_T = np.array([config.task_weights.get(task.name, task.weight) for task in tasks])
    effective_T = effective_shares(config.aggregation, draw_N3[order, 0], label_N[order], step_N, weight_T)
    steps = config.steps or math.ceil(row_count / config.batch_size * total / seen)
    mean_tokens = {s.task: float(s.lengths.mean()) for s in found}
    whole = (
        int(positions * total / seen)
        if config.steps is None
        else int(positions / (row_count / config.batch_size) * steps)
    )
    unsure = [f"Whether {facts.architecture} can be packed is found out when training starts; counted as packed."]
    warnings = unsure if packs and route is None else []
    fill = float(length_N.sum() / positions)
    return Simulation(mixture.plan(mean_tokens), steps, fill, whole, effective_T, warnings)


def examples_drawn(node: TrainNode, rows: dict[str, int], mean_lengths: Sequence[float], packs: bool) -> int:
    """Return how many examples a train node draws; with ``steps`` and packing an estimate."""
    config = node.step.training
    if config.examples:
        return config.examples
    if config.steps:
        per_row = config.max_length / (sum(mean_lengths) / len(mean_lengths)) if packs else 1
        return max(1, round(config.steps * config.batch_size * per_row))
    return math.ceil((config.epochs or 1.0) * sum(rows.values()))


def effective_shares(
    aggregation: str, task_N: np.ndarray, label_N: np.ndarray, step_N: np.ndarray, weight_T: np.ndarray
) -> np.ndarray:
    """Return the mean share of each task in the steps' losses, [T]: card 20's cases, by counts per step.

    Args:
        aggregation: one of the four.
        task_N: task of every example, in training order.
        label_N: tokens of it that carry loss.
        step_N: optimiser step that it falls into.
        weight_T: task weights.
    """
    import numpy as np

    steps, tasks = int(step_N.max()) + 1, len(weight_T)
    cell_N = step_N * tasks + task_N
    tokens_ST = np.bincount(cell_N, weights=label_N, minlength=steps * tasks).reshape(steps, tasks)
    examples_ST = np.bincount(cell_N, minlength=steps * tasks).reshape(steps, tasks).astype(float)
    by_step_ST = {
        "token_mean": tokens_ST,
        "sample_mean": examples_ST,
        "task_token_mean": weight_T * (examples_ST > 0),
        "task_sample_mean": weight_T * (examples_ST > 0),
    }[aggregation]
    total_S1 = by_step_ST.sum(axis=1, keepdims=True)
    return (by_step_ST / np.where(total_S1 > 0, total_S1, 1)).mean(axis=0)
