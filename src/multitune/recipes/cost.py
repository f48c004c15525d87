"""The cost record of a trained model: what trains, what lies on disk, what training took, how fast it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitune.training.train import TrainingResult


def cost_of(result: TrainingResult, parameters: int, model: Path) -> dict[str, Any]:
    """Return what is known without measuring.

    Args:
        result: of the training.
        parameters: of the model before it was adapted.
        model: folder where it was saved.

    Returns:
        trainable (numbers), share (of the model's), bytes (of weights on disk: the adapter alone where one is saved),
        peak_bytes and step_seconds while training (None where not known).
    """
    return {
        "trainable": result.trainable_parameters,
        "share": result.trainable_parameters / parameters,
        "bytes": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "peak_bytes": result.peak_bytes,
        "step_seconds": result.step_seconds,
    }


def parameters_of(model: Any) -> int:
    """Return how many weights a model has before it is adapted; quantised ones count as the weights they stand for."""
    carrier = model.encoder if hasattr(model, "heads") else model
    return int(carrier.num_parameters())


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


def told(node: str, cost: Mapping[str, Any]) -> Cost:
    """Return a cost record in words.

    Args:
        node: the step.
        cost: as `cost_of` returns it, with ``tokens_per_second`` where it was measured.
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
