"""Fitted boosters on disk: a folder of ``model.json`` and ``trees.safetensors``, and no pickle.

``model.json``: ``format`` (see FORMAT), the estimator's name and parameters, tasks, features, classes or outputs,
iterations and losses, and the SHA-256 of the trees, so that files of two savings cannot be mixed.
``trees.safetensors``: ``theta`` after every iteration of block 2, and the arrays of ``Trees`` of each function f under
``f.<array>``.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from multitune.tabular.boosting_blocks import FUNCTIONS, Boosted
from multitune.tabular.boosting_estimator import RobustBooster
from multitune.tabular.boosting_inputs import Feature
from multitune.tabular.boosting_trees import Trees
from multitune.tabular.estimator_files import plain, read_facts, write_in_one_piece
from multitune.tabular.multitab_columns import TableError

FORMAT = 1
"""Version of the files; a reader takes its own and older ones."""

LEARNED = ("n_features_in_", "_has_tasks", "_one_dimensional", "n_outputs_")
"""Plain facts that are kept where an estimator has them."""

Booster = TypeVar("Booster", bound=RobustBooster)


def save_booster(booster: RobustBooster, path: str | os.PathLike[str]) -> None:
    """Write a fitted booster; each file whole or not at all."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    boosted = booster.boosted_
    arrays = {"theta": boosted.theta_IT}
    for name in FUNCTIONS:
        for field in fields(Trees):
            arrays[f"{name}.{field.name}"] = np.ascontiguousarray(getattr(boosted.trees[name], field.name))
    trees = save(arrays)
    parameters = booster.get_params(deep=False)
    if not isinstance(parameters["random_state"], (int, np.integer, type(None))):
        parameters["random_state"] = None  # a generator; what it drew is in theta
    if hasattr(parameters["theta0"], "items"):
        parameters["theta0"] = [float(parameters["theta0"][task]) for task in booster.tasks_.tolist()]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "estimator": type(booster).__name__,
        "parameters": parameters,
        "tasks": booster.tasks_.tolist(),
        "features": [asdict(feature) for feature in booster.features_],
        "learned": {name: getattr(booster, name) for name in LEARNED if hasattr(booster, name)},
        "iterations": boosted.iterations,
        "training_loss": boosted.training_loss,
        "validation_loss": boosted.validation_loss,
        "trees_sha256": hashlib.sha256(trees).hexdigest(),
    }
    if hasattr(booster, "feature_names_in_"):
        facts["feature_names"] = booster.feature_names_in_.tolist()
    if hasattr(booster, "classes_"):
        facts["classes"] = booster.classes_.tolist()
    content = (json.dumps(facts, indent=1, default=plain) + "\n").encode()  # before anything is written
    write_in_one_piece(folder / "trees.safetensors", trees)
    write_in_one_piece(folder / "model.json", content)


def load_booster(cls: type[Booster], path: str | os.PathLike[str]) -> Booster:
    """Return a fitted booster of a class from its folder."""
    folder = Path(path)
    facts = read_facts(folder / "model.json", cls.__name__, FORMAT)
    arrays = _arrays(folder / "trees.safetensors", facts["trees_sha256"])
    parameters = facts["parameters"]
    parameters["n_estimators"] = tuple(parameters["n_estimators"])
    booster = cls(**parameters)
    for name, value in facts["learned"].items():
        setattr(booster, name, value)
    booster.tasks_ = _labels(facts["tasks"])
    booster.features_ = [
        Feature(one["name"], None if one["levels"] is None else tuple(one["levels"])) for one in facts["features"]
    ]
    if "feature_names" in facts:
        booster.feature_names_in_ = np.array(facts["feature_names"], dtype=object)
    if "classes" in facts:
        booster.classes_ = _labels(facts["classes"])
    trees = {
        name: Trees(**{field.name: arrays[f"{name}.{field.name}"] for field in fields(Trees)}) for name in FUNCTIONS
    }
    n1, n2, n3 = facts["iterations"]
    booster.boosted_ = Boosted(trees, arrays["theta"], (n1, n2, n3), facts["training_loss"], facts["validation_loss"])
    return booster


def _labels(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=None if len({type(one) for one in values}) == 1 else object)


def _arrays(file: Path, wanted: str) -> dict[str, np.ndarray]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise TableError("The file of the trees is missing.", str(file), "Save the estimator again.") from None
    if hashlib.sha256(content).hexdigest() != wanted:
        raise TableError("The trees are not those that model.json was written with.", str(file), "Save it again.")
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise TableError(f"The trees cannot be read: {error}.", str(file), "Save it again.") from None
