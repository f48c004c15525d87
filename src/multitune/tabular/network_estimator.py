"""The contract of all tabular networks: fit, predict, score, save and load as scikit-learn's users expect them.

What differs between estimators is the network they build; see ``multitab.py`` and ``multitab_baselines.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from multitune.tabular.multitab_columns import TableError, aligned, coded, read_features
from multitune.tabular.multitab_schema import (
    TargetColumn,
    encode_features,
    encode_target,
    fit_feature,
    fit_target,
    infer_kind,
    kinds_of,
)
from multitune.tabular.network_inputs import (
    categorical_places,
    check_settings,
    read_targets,
    read_weights,
    unnamed_targets,
    validation_rows,
)
from multitune.tabular.network_layers import NetworkTarget, TargetKind
from multitune.tabular.network_metrics import mean_score, target_metrics, target_values
from multitune.tabular.network_training import (
    History,
    Place,
    Rows,
    TrainingSettings,
    find_place,
    network_outputs,
    train_network,
)

LARGE_TABLE = 10_000  # rows from which early_stopping="auto" keeps some aside, as scikit-learn's boosters do
STEPS_OF_EPOCH = 50  # that batch_size="auto" allows at least, between SMALLEST_BATCH and LARGEST_BATCH rows each
SMALLEST_BATCH, LARGEST_BATCH = 32, 2048


class NetworkEstimator(BaseEstimator):
    """Fits one network to all targets, or one to each.

    Subclasses store their arguments, say which kinds of targets they take (``_kinds``), and build a network
    (``_network``); ``_per_target`` says whether every target gets a network of its own.

    Attributes:
        features_, targets_: what is remembered of every column.
        n_features_in_, feature_names_in_: as everywhere; names only where the table had them.
        networks_: the networks, one or one per target.
        histories_: of their trainings; n_iter_ is the largest number of epochs run.
    """

    _kinds: tuple[TargetKind, ...] = ("binary", "multiclass", "regression")
    _per_target = False

    # What subclasses store.
    epochs: int
    batch_size: Any
    learning_rate: float
    weight_decay: float
    early_stopping: Any
    validation_fraction: float
    patience: int
    regression_loss: Any
    precision: Any
    device: str
    target_types: Any
    categorical_features: Any
    random_state: Any
    verbose: bool

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, eval_set: Any = None) -> Self:
        """Learn the targets from the features.

        Args:
            X: (rows, features), a pandas, polars or Arrow table or a matrix. Words, categories and truth values are
                categorical features; missing numbers become the median, missing categories a level of their own.
            y: (rows,) or (rows, targets); NaN or None where a label is missing.
            sample_weight: (rows,) or (rows, targets), not negative; rows of weight 0 are as if they were not there.
            eval_set: (X, y) to stop early by, in place of rows kept aside.

        Raises:
            TableError: see there; every message says what is wrong with which column.
        """
        check_settings(self.get_params(deep=False))
        frame, names = read_features(X)
        labels, self._one_dimensional = read_targets(y, len(frame), type(self).__name__)
        weights = read_weights(sample_weight, len(frame), labels.shape[1])
        if weights is not None and not weights.any(axis=1).all():
            kept = weights.any(axis=1)
            frame, labels, weights = frame[kept], labels[kept], weights[kept]
        if len(frame) < 2:
            raise TableError("n_samples = 1 is too few to learn from.", "X", "Give two rows or more.")
        categorical = categorical_places(frame, self.categorical_features)
        self.n_features_in_ = frame.shape[1]
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        shown = names or [str(place) for place in range(frame.shape[1])]
        self.features_ = [fit_feature(frame.iloc[:, j], shown[j], j in categorical) for j in range(len(shown))]
        self.targets_ = self._fit_targets(labels)
        self._train(self._rows(frame, labels, weights), self._eval_rows(eval_set))
        return self

    def _fit_targets(self, labels: pd.DataFrame) -> list[TargetColumn]:
        names = [str(name) for name in labels.columns]
        asked = kinds_of(names, self.target_types)
        targets = []
        for place, name in enumerate(names):
            column = labels.iloc[:, place]
            kind = asked[name] or (self._kinds[0] if len(self._kinds) == 1 else infer_kind(column))
            if kind not in self._kinds and asked[name]:
                who = type(self).__name__
                raise TableError(f"{who} takes no {kind} target.", f"target '{name}'", "Use MultiTabNet for a mixture.")
            if kind not in self._kinds:  # a classifier reads any word or whole number as a class
                kind = _class_kind(column, name)
            targets.append(fit_target(column, name, kind))
        return targets

    def _rows(self, frame: pd.DataFrame, labels: pd.DataFrame | None, weights: Any = None) -> Rows:
        numeric, codes = encode_features(frame, self.features_)
        if labels is None:
            return Rows(torch.from_numpy(numeric), torch.from_numpy(codes))
        encoded = np.stack([encode_target(labels.iloc[:, t], target) for t, target in enumerate(self.targets_)], axis=1)
        return Rows(
            torch.from_numpy(numeric),
            torch.from_numpy(codes),
            torch.from_numpy(encoded.astype(np.float32)),
            None if weights is None else torch.from_numpy(weights.astype(np.float32)),
        )

    def _eval_rows(self, eval_set: Any) -> Rows | None:
        if eval_set is None:
            return None
        if not isinstance(eval_set, (tuple, list)) or len(eval_set) not in (2, 3):
            raise TableError("It is not (X, y).", "eval_set", "Give a pair of features and targets.")
        frame = self._features(eval_set[0])
        labels, _ = read_targets(eval_set[1], len(frame), type(self).__name__)
        self._check_targets(labels)
        weights = read_weights(eval_set[2] if len(eval_set) == 3 else None, len(frame), labels.shape[1])
        return self._rows(frame, labels, weights)

    def _train(self, rows: Rows, validation: Rows | None) -> None:
        assert rows.labels is not None
        place = find_place(self.device)
        drawn = int(check_random_state(self.random_state).randint(2**31 - 1)) if place.process == 0 else 0
        seed = int(place.sum(torch.tensor(drawn, device=place.device)))  # all processes go by the first one's
        stops = self.early_stopping is True or (self.early_stopping == "auto" and len(rows) >= LARGE_TABLE)
        if validation is None and stops:
            classes = [t for t, target in enumerate(self.targets_) if target.kind != "regression"]
            aside = validation_rows(rows.labels[:, classes].numpy(), self.validation_fraction, seed)
            validation, rows = rows.take(torch.from_numpy(aside)), rows.take(torch.from_numpy(~aside))
        assert rows.labels is not None
        groups = [[t] for t in range(len(self.targets_))] if self._per_target else [list(range(len(self.targets_)))]
        for group in groups:
            _check_validation(validation, [self.targets_[t] for t in group], group)
        self.networks_, self.histories_, self.context_ = [], [], self._draw_context(rows, seed)
        devices = [place.device] if place.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            for number, group in enumerate(groups):
                torch.manual_seed(seed + number)
                network = self._network([self.targets_[t].outputs for t in group])
                torch.manual_seed(seed + number + 1_000_003 * (place.process + 1))  # processes drop out differently
                self.networks_.append(network)
                self.histories_.append(self._train_one(network, group, rows, validation, place, seed + number))
                network.to("cpu")
        self.n_iter_ = max(len(history.losses) for history in self.histories_)

    def _train_one(
        self, network: nn.Module, group: list[int], rows: Rows, validation: Rows | None, place: Place, seed: int
    ) -> History:
        mine = rows.of_targets(group).labelled()
        targets = [self.targets_[t] for t in group]
        if len(mine) < 2:
            raise TableError(
                f"Only {len(mine)} row is left to learn from, with n_samples = {len(rows)}.",
                f"targets {', '.join(target.name for target in targets)}",
                "Give two labelled rows or more.",
            )
        held_out = None if validation is None else validation.of_targets(group)

        def validate() -> float:
            assert held_out is not None
            return mean_score(self._run(network, held_out, place), held_out, targets)

        settings = TrainingSettings(
            epochs=self.epochs,
            batch_size=self._batch_rows(len(mine)),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=self.patience,
            regression_loss=self.regression_loss,
            precision=self.precision,
            verbose=bool(self.verbose),
        )
        outputs = [target.outputs for target in targets]
        history = train_network(network, outputs, mine, settings, place, seed, validate if held_out else None)
        if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
            raise TableError(
                f"Training diverged: after {len(history.losses)} epochs weights are no longer finite.",
                f"targets {', '.join(target.name for target in targets)}",
                f"Lower learning_rate, which is {self.learning_rate:g}.",
            )
        network.tokeniser.mean_for_unseen()  # type: ignore[union-attr, operator]
        return history

    def _batch_rows(self, rows: int) -> int:
        if self.batch_size == "auto":
            return min(max(rows // STEPS_OF_EPOCH, SMALLEST_BATCH), LARGEST_BATCH)
        return int(self.batch_size)

    def _run(self, network: nn.Module, rows: Rows, place: Place) -> Tensor:
        context: Sequence[Tensor] = ()
        if self.context_ is not None:
            with torch.no_grad():
                fixed = self.context_.to(place.device)
                context = self._encode(network.to(place.device).eval(), fixed)
        return network_outputs(network, rows, place, LARGEST_BATCH, self.precision, context)

    def _encode(self, network: nn.Module, context: Rows) -> Sequence[Tensor]:
        """Return the fixed rows as a network with attention between rows sees them."""
        raise NotImplementedError

    def _draw_context(self, rows: Rows, seed: int) -> Rows | None:
        return None

    def _network(self, targets: list[NetworkTarget]) -> nn.Module:
        raise NotImplementedError

    @property
    def _widths(self) -> tuple[int, list[int]]:
        """The number of numeric features and the codes of every categorical one."""
        categorical = [feature.codes for feature in self.features_ if feature.levels is not None]
        return len(self.features_) - len(categorical), categorical

    def _features(self, X: Any) -> pd.DataFrame:
        check_is_fitted(self, "targets_")
        frame, names = read_features(X)
        fitted = list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
        return aligned(frame, names, fitted, self.n_features_in_, type(self).__name__)

    def _target_outputs(self, X: Any) -> tuple[list[npt.NDArray[Any]], pd.Index]:
        """Return for every target probabilities (rows, classes) or values (rows,), and the index of the rows."""
        frame = self._features(X)
        rows, place = self._rows(frame, None), find_place(self.device)
        output = torch.cat([self._run(network, rows, place) for network in self.networks_], dim=1)
        for network in self.networks_:
            network.to("cpu")
        return [values.numpy() for values in target_values(output, self.targets_)], frame.index

    def _predicted(self, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        predicted = []
        for target, value in zip(self.targets_, values, strict=True):
            labels = value if target.kind == "regression" else target.class_array()[value.argmax(axis=1)]
            predicted.append(labels)
        return predicted

    def evaluate(self, X: Any, y: Any, sample_weight: Any = None) -> pd.DataFrame:
        """Return one row of metrics per target, over the rows that have its label.

        Returns:
            Columns ``auroc`` and ``accuracy`` of classification targets, ``explained_variance``, ``r2`` and ``mae`` of
            regression targets (nan for the others), ``rows`` with a label.
        """
        values, _ = self._target_outputs(X)
        labels, _ = read_targets(y, len(values[0]), type(self).__name__)
        self._check_targets(labels)
        weights = read_weights(sample_weight, len(labels), labels.shape[1])
        table = {}
        for t, (target, value, predicted) in enumerate(
            zip(self.targets_, values, self._predicted(values), strict=True)
        ):
            column = labels.iloc[:, t]
            here = ~column.isna().to_numpy()
            weight = None if weights is None else weights[here, t]
            code = encode_target(column[here], target)
            table[target.name] = target_metrics(target, code, value[here], predicted[here], weight)
        columns = ["auroc", "accuracy", "explained_variance", "r2", "mae", "rows"]
        return pd.DataFrame.from_dict(table, orient="index", columns=columns)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the mean over the targets of accuracy and R2, over the labels that are present."""
        table = self.evaluate(X, y, sample_weight)
        return float(table["accuracy"].fillna(table["r2"]).mean())

    def _check_targets(self, labels: pd.DataFrame) -> None:
        if labels.shape[1] != len(self.targets_):
            raise TableError(
                f"There are {labels.shape[1]} targets; at fit there were {len(self.targets_)}.", "y", "Give the same."
            )
        names, fitted = [str(name) for name in labels.columns], [target.name for target in self.targets_]
        if len(names) > 1 and names != fitted and unnamed_targets(len(names)) not in (names, fitted):
            raise TableError(
                f"The targets are {names}; at fit they were {fitted}.", "y", "Give the same columns in the same order."
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted estimator as a folder of JSON and safetensors; no pickle. See ``network_saving``."""
        from multitune.tabular.network_saving import save_estimator

        check_is_fitted(self, "targets_")
        save_estimator(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Return the estimator that ``save`` wrote.

        Raises:
            TableError: no such folder, written by a newer version, damaged, or of another estimator.
        """
        from multitune.tabular.network_saving import load_estimator

        return load_estimator(cls, path)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.target_tags.multi_output = True
        tags.target_tags.required = True
        return tags


def _class_kind(column: pd.Series, name: str) -> TargetKind:
    """Return the kind of a classifier's target; refuse fractions."""
    if pd.api.types.is_float_dtype(column.dtype) and np.any(column.dropna().to_numpy() % 1):
        raise TableError(
            "Unknown label type: continuous; these are fractions and no classes.",
            f"target '{name}'",
            "Use MultiTabNetRegressor, or MultiTabNet for targets of several kinds.",
        )
    return "binary" if len(coded(column, f"target '{name}'")[1]) <= 2 else "multiclass"


def _check_validation(validation: Rows | None, targets: list[TargetColumn], group: list[int]) -> None:
    if validation is None:
        return
    blank = torch.zeros(len(validation), sum(target.outputs.outputs for target in targets))
    if not len(validation) or math.isnan(mean_score(blank, validation.of_targets(group), targets)):
        raise TableError(
            f"By {len(validation)} validation rows no target can be measured: their labels are all alike or missing.",
            f"targets {', '.join(target.name for target in targets)}",
            "Give an eval_set, raise validation_fraction, or set early_stopping=False.",
        )
