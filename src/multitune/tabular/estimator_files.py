"""What saved estimators of every kind have in common: ``model.json``, and files that are whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from multitune.tabular.multitab_columns import TableError


def read_facts(file: Path, wanted: str, newest: int) -> dict[str, Any]:
    """Return what ``model.json`` says.

    Args:
        file: ``model.json``.
        wanted: the name of the estimator's class.
        newest: the newest format that is read.

    Raises:
        TableError: no such file, damaged, of a newer format, or of another estimator.
    """
    try:
        facts: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise TableError("There is no saved estimator here.", str(file), "Give the folder of a `save`.") from None
    except ValueError:
        raise TableError("The file is damaged; it is no JSON.", str(file), "Save the estimator again.") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("format"), int):
        raise TableError("The file names no format.", str(file), "Give the folder of a `save`.")
    if facts["format"] > newest:
        raise TableError(
            f"It was saved by a newer version, in format {facts['format']}; this version reads up to {newest}.",
            str(file),
            "Update multitune, or save it with this version.",
        )
    if facts["estimator"] != wanted:
        raise TableError(
            f"It holds a {facts['estimator']} and no {wanted}.", str(file), f"Call {facts['estimator']}.load."
        )
    return facts


def plain(value: Any) -> Any:
    """Return a NumPy value as JSON knows it; what ``json.dumps`` takes as ``default``.

    Raises:
        TableError: it has no plain value.
    """
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TableError(f"{value!r} cannot be written as JSON.", "save", "Use plain values for the parameters.")


def write_in_one_piece(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
