"""What the merge steps of a recipe will read and write, before the models that they merge exist."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from multitune.recipes.graph import MergeNode, build
from multitune.recipes.merge_learning import looks_at_rows
from multitune.recipes.schema import Recipe


@dataclass(frozen=True)
class MergeNodePlan:
    """What one merge node will do.

    Attributes:
        name, method, models: the node, its method, and how many models it merges.
        candidates: merges that are compared before; 0 without a search.
        bytes_to_read, bytes_to_write: with every model as large as the base in the base's own type; adapters are less.
        seconds: forecast of one merge on this machine; of a method that looks at rows, of the writing alone.
    """

    name: str
    method: str
    models: int
    candidates: int
    bytes_to_read: int
    bytes_to_write: int
    seconds: float


def plan_merges(recipe: Recipe) -> list[MergeNodePlan]:
    """Return the forecasts of a recipe's merges; nothing where the base lies on no disk of this machine."""
    return [one for node in build(recipe) if isinstance(node, MergeNode) and (one := _plan(node, recipe)) is not None]


def _plan(node: MergeNode, recipe: Recipe) -> MergeNodePlan | None:
    from multitune.models.location import resolve
    from multitune.weights.checkpoints import BYTES, Checkpoint
    from multitune.weights.planning import forecast_seconds

    location = Path(resolve(recipe.base))
    if not location.is_dir():
        return None
    base = Checkpoint.open(location)
    models = len(node.step.models) or max(len(part.sources) for part in node.step.slices)
    entries = sum(math.prod(entry.shape) for entry in base.entries.values())
    written = base.bytes
    if node.step.dtype is not None:
        written = entries * BYTES[{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[node.step.dtype]]
    over = node.step.search.over if node.step.search is not None else {}
    return MergeNodePlan(
        name=node.name,
        method=node.step.method,
        models=models,
        candidates=math.prod(len(values) for values in over.values()) if over else 0,
        bytes_to_read=base.bytes * (models + (node.step.base is not None)),
        bytes_to_write=written,
        seconds=forecast_seconds("task_arithmetic" if looks_at_rows(node.step) else node.step.method, entries, models),
    )
