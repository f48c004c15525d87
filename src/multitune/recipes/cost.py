"""The cost record of a trained model: what trains, what lies on disk, what training took, how fast it reads."""

from __future__ import annotations

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
