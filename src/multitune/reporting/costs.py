"""What every trained model of a run costs, in words: numbers, bytes, memory, time, speed at inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multitune.reporting.run_folder import Run


@dataclass(frozen=True)
class Cost:
    """One model's cost record, as people read it; "" where nothing was measured.

    Attributes:
        node: the step.
        trainable, share: numbers that trained, and their share of the model's.
        disk: of its weights on disk.
        memory: peak while training.
        step: median time of an optimiser step.
        unmerged, merged: tokens read per second with the adapter beside the weights, and with it added into them.
    """

    node: str
    trainable: str
    share: str
    disk: str
    memory: str
    step: str
    unmerged: str
    merged: str


def costs(runs: Sequence[Run]) -> tuple[Cost, ...]:
    """Return the costs of every trained model of the first run whose record was kept."""
    artifacts = runs[0].artifacts
    return tuple(told(node, facts["cost"]) for node, facts in artifacts.items() if facts.get("cost"))


def told(node: str, cost: Mapping[str, Any]) -> Cost:
    """Return a cost record in words.

    Args:
        node: the step.
        cost: as `multitune.recipes.cost.cost_of` returns it, with ``tokens_per_second`` where it was measured.
    """
    speeds = cost.get("tokens_per_second") or {}
    return Cost(
        node,
        f"{cost['trainable']:,}",
        f"{cost['share']:.2%}",
        size(cost["bytes"]),
        size(cost.get("peak_bytes")),
        milliseconds(cost.get("step_seconds")),
        *(f"{speeds[kind]:,.0f}" if speeds.get(kind) else "" for kind in ("unmerged", "merged")),
    )


def size(number: float | None) -> str:
    """Return bytes as people write them: 45 kB, 1.20 MB, 3.40 GB."""
    if number is None:
        return ""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number / 1e3:.0f} kB"


def milliseconds(seconds: float | None) -> str:
    """Return a short time: 12.3 ms, 1.25 s."""
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
