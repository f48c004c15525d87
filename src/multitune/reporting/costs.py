"""What every trained model of a run costs, in words: numbers, bytes, memory, time, speed at inference."""

from __future__ import annotations

from collections.abc import Sequence

from multitune.recipes.cost import Cost, told
from multitune.reporting.run_folder import Run


def costs(runs: Sequence[Run]) -> tuple[Cost, ...]:
    """Return the costs of every trained model of the first run whose record was kept."""
    artifacts = runs[0].artifacts
    return tuple(told(node, facts["cost"]) for node, facts in artifacts.items() if facts.get("cost"))
