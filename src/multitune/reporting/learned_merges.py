"""What merges have learned from rows: every model's coefficients, by category and over depth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from multitune.reporting.charts import Panel, Series, line_panel
from multitune.reporting.run_folder import Run

MOST_BLOCKS = 24
"""Blocks that a table lists one by one; more are told by category."""


@dataclass(frozen=True)
class CoefficientRow:
    """One line of the table: a block, or a category with the mean of its blocks; per model lowest, mean, highest."""

    name: str
    blocks: int
    per_model: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class LearnedMerge:
    """One merge step.

    Attributes:
        node, method, models: as in the recipe.
        summary: what it looked at and what it kept, in words.
        told: what the numbers are.
        rows: of the table; empty where a method has no coefficients.
        panel: mean coefficient of every model over depth; None where blocks are not tensors of layers.
    """

    node: str
    method: str
    models: tuple[str, ...]
    summary: str
    told: str
    rows: tuple[CoefficientRow, ...]
    panel: Panel | None


def learned_merges(run: Run) -> tuple[LearnedMerge, ...]:
    """Return what the merges of a run have learned; nothing where none looks at rows."""
    return tuple(_view(node, told) for node, told in run.learned.items())


def _view(node: str, told: Mapping[str, Any]) -> LearnedMerge:
    models = tuple(told["models"])
    blocks: Sequence[Mapping[str, Any]] = told.get("blocks", ())
    return LearnedMerge(
        node=node,
        method=told["method"],
        models=models,
        summary=_summary(told),
        told=told.get("told", "coefficient"),
        rows=tuple(_rows(blocks)),
        panel=_panel(node, models, blocks, told.get("told", "coefficient")),
    )


def _summary(told: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count} of {task}" for task, count in told["rows"].items())
    parts = [f"Validation rows: {rows}."]
    if "coefficients" in told:
        parts.append(f"{told['coefficients']:,} coefficients.")
    if told.get("scores"):
        start, kept = -told["scores"][0], -told["scores"][told["epoch"]]
        parts.append(f"Kept: {f'epoch {epoch}' if (epoch := told['epoch']) else 'the start'}.")
        parts.append(f"Mean loss of the rows that choose the epoch: {start:.4f} at the start, {kept:.4f} kept.")
    if "measured_on" in told:
        pairs = zip(told["models"], told["measured_on"], strict=True)
        parts.append("Measured: " + "; ".join(f"{model} on {', '.join(tasks)}" for model, tasks in pairs) + ".")
    return " ".join(parts)


def _rows(blocks: Sequence[Mapping[str, Any]]) -> list[CoefficientRow]:
    together: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    by_category = len(blocks) > MOST_BLOCKS
    for block in blocks:
        together[(block["category"] or block["block"]) if by_category else block["block"]].append(block)
    return [
        CoefficientRow(
            name,
            len(members),
            tuple(
                (min(values), fmean(values), max(values))
                for model in range(len(members[0]["values"]))
                if (values := [value for block in members for value in block["values"][model]])
            ),
        )
        for name, members in list(together.items())[: 2 * MOST_BLOCKS]
    ]


def _panel(node: str, models: Sequence[str], blocks: Sequence[Mapping[str, Any]], told: str) -> Panel | None:
    """Draw every model's mean over the blocks of each layer, where there are several and none of them is negative."""
    layers: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for block in blocks:
        if block["layer"] is not None:
            layers[block["layer"]].append(block)
    lines = []
    for model, name in enumerate(models):
        per_layer = {layer: [v for block in layers[layer] for v in block["values"][model]] for layer in sorted(layers)}
        lines.append(Series(name, [(layer, fmean(values)) for layer, values in per_layer.items()]))
    if len(layers) < 2 or any(value < 0 for line in lines for _, value in line.points):
        return None
    return line_panel(f"{node}: mean {told} of each layer", lines, models, width=560, height=230, along="layer")
