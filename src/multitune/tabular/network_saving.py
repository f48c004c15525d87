"""Fitted network estimators on disk: a folder of ``model.json`` and ``weights.safetensors``, and no pickle.

``model.json``: ``format`` (see FORMAT), the estimator's name and parameters, the fitted features and targets, and the
SHA-256 of the weights, so that files of two savings cannot be mixed. ``weights.safetensors``: the weights of network i
under ``i.<name>``, and ``context.numeric`` and ``context.codes`` where rows attend to fixed rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from multitune.tabular.estimator_files import plain, read_facts, write_in_one_piece
from multitune.tabular.multitab_columns import TableError
from multitune.tabular.multitab_schema import FeatureColumn, TargetColumn
from multitune.tabular.network_estimator import NetworkEstimator
from multitune.tabular.network_training import Rows

FORMAT = 1
"""Version of the files; a reader takes its own and older ones."""

Estimator = TypeVar("Estimator", bound=NetworkEstimator)


def save_estimator(estimator: NetworkEstimator, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator; each file whole or not at all."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}.{name}": tensor.contiguous()
        for number, network in enumerate(estimator.networks_)
        for name, tensor in network.state_dict().items()
    }
    if estimator.context_ is not None:
        tensors["context.numeric"] = estimator.context_.numeric.contiguous()
        tensors["context.codes"] = estimator.context_.codes.contiguous()
    weights = save(tensors)
    parameters = estimator.get_params(deep=False)
    if not isinstance(parameters["random_state"], (int, np.integer, type(None))):
        parameters["random_state"] = None  # a generator; what was fitted is in the weights
    facts = {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "parameters": parameters,
        "features": [asdict(feature) for feature in estimator.features_],
        "named_features": hasattr(estimator, "feature_names_in_"),
        "targets": [asdict(target) for target in estimator.targets_],
        "one_dimensional": estimator._one_dimensional,
        "epochs_run": estimator.n_iter_,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    write_in_one_piece(folder / "weights.safetensors", weights)
    write_in_one_piece(folder / "model.json", (json.dumps(facts, indent=1, default=plain) + "\n").encode())


def load_estimator(cls: type[Estimator], path: str | os.PathLike[str]) -> Estimator:
    """Return a fitted estimator of a class from its folder."""
    folder = Path(path)
    facts = read_facts(folder / "model.json", cls.__name__, FORMAT)
    weights = (folder / "weights.safetensors").read_bytes()
    if hashlib.sha256(weights).hexdigest() != facts["weights_sha256"]:
        raise TableError("The weights are not those that model.json was written with.", str(folder), "Save it again.")
    estimator = cls(**facts["parameters"])
    estimator.features_ = [FeatureColumn(**_tuples(feature)) for feature in facts["features"]]
    estimator.targets_ = [TargetColumn(**_tuples(target)) for target in facts["targets"]]
    estimator.n_features_in_ = len(estimator.features_)
    if facts["named_features"]:
        estimator.feature_names_in_ = np.array([feature.name for feature in estimator.features_], dtype=object)
    estimator._one_dimensional = facts["one_dimensional"]
    estimator.n_iter_ = facts["epochs_run"]
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise TableError(f"The weights cannot be read: {error}.", str(folder), "Save it again.") from None
    has_context = "context.numeric" in tensors
    estimator.context_ = Rows(tensors["context.numeric"], tensors["context.codes"]) if has_context else None
    single = [[target] for target in estimator.targets_] if estimator._per_target else [estimator.targets_]
    estimator.networks_, estimator.histories_ = [], []
    with torch.random.fork_rng(devices=[]):
        for number, targets in enumerate(single):
            network = estimator._network([target.outputs for target in targets])
            own = {name.removeprefix(f"{number}."): t for name, t in tensors.items() if name.startswith(f"{number}.")}
            network.load_state_dict(own)
            estimator.networks_.append(network.eval())
    return estimator


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
