"""A drawing of what ways of adapting reach against how much they train."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from multitune.reporting.charts import round_values, short, spread_apart

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 200, 20, 44


AXES = {
    "trainable": "numbers that train",
    "bytes": "bytes on disk",
    "peak_bytes": "peak memory while training, bytes",
    "step_seconds": "seconds per optimiser step",
}
"""Costs that can stand to the right, with what is written below."""


def quality_against_cost(rows: Sequence[Mapping[str, Any]], cost: str = "trainable") -> str:
    """Return an SVG: a cost (a logarithmic axis) to the right, the mean over tasks upwards.

    Args:
        rows: as `multitune.recipes.method_comparison.compared` returns them; those without a mean, or whose cost is
            not known, are left out.
        cost: of AXES.
    """
    drawn = [row for row in rows if math.isfinite(row["mean"]) and row[cost]]
    lows = [math.log10(row[cost]) for row in drawn]
    low, high = math.floor(min(lows, default=0)), math.ceil(max(lows, default=1) + 1e-9)
    high = max(high, low + 1)
    means = [row["mean"] for row in drawn] or [0.0, 1.0]
    ticks = round_values(min(0.0, *means), max(*means, min(means) + 1e-6), at_most=6)
    bottom, top = min(ticks[0], *means), max(ticks[-1], *means)

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="13" '
        f'font-family="sans-serif"><title>Mean over tasks against {AXES[cost]}</title>',
        "<style>text{fill:#222}line{stroke:#ddd}circle{fill:#2a5db0}@media (prefers-color-scheme:dark)"
        "{text{fill:#eee}line{stroke:#444}circle{fill:#8ab4f8}}</style>",
    ]
    for tick in ticks:
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for power in range(low, high + 1):
        label = f'<text x="{x(power):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(10.0**power)}</text>'
        parts.append(label)
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{AXES[cost]}</text>')
    places = spread_apart(
        {row["variant"]: y(row["mean"]) for row in drawn}, gap=15.0, low=float(TOP), high=float(HEIGHT - BOTTOM)
    )
    for row, at in zip(drawn, lows, strict=True):
        parts.append(f'<circle cx="{x(at):.1f}" cy="{y(row["mean"]):.1f}" r="4"/>')
        name = escape(row["variant"])
        parts.append(f'<text x="{x(at) + 8:.1f}" y="{places[row["variant"]] + 4:.1f}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
