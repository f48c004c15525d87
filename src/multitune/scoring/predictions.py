"""What a model answered to every example of a task, as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from multitune.errors import MultituneError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of a model.

    Attributes:
        id: the example's id; it occurs once per template that was scored.
        where: file and line of the example.
        prompt: the text that was asked.
        prediction: the answer: a choice's text, the generated text, or a number (regress).
        reference: the right answer, of the same type.
        correct: whether the answer is right; None where a metric knows degrees only.
        score: the example's value of the task's first metric that is a mean over examples; its mean is that metric.
    """

    id: str
    where: str
    prompt: str
    prediction: str | float
    reference: str | float
    correct: bool | None
    score: float


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions, one JSON object a line; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for prediction in predictions:
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_predictions(path: Path) -> list[Prediction]:
    """Return the predictions of a file in its order.

    Raises:
        MultituneError: the file is missing, or a line is not a prediction.
    """
    if not path.is_file():
        raise MultituneError(f"{path} does not exist.", str(path), "Score the model first; that writes predictions.")
    predictions = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                predictions.append(Prediction(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise MultituneError(
                    "This line is not a prediction.",
                    f"{path}:{number}",
                    "Delete the file and score the model again.",
                ) from error
    return predictions
