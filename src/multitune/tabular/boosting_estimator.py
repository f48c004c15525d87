"""The contract of the R-MTGB estimators: fit, predict, score, save and load as scikit-learn's users expect them.

The regressor and the classifier differ in their loss and in what they make of y; see ``rmtgb.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from os import PathLike
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from multitune.tabular.boosting_bins import bin_features
from multitune.tabular.boosting_blocks import (
    FUNCTIONS,
    BlockSettings,
    Boosted,
    Engine,
    RowSet,
    boost,
    combined,
    sigmoid,
)
from multitune.tabular.boosting_exact import ExactEngine, TreeSettings
from multitune.tabular.boosting_histogram import HistogramEngine
from multitune.tabular.boosting_inputs import (
    Places,
    check_settings,
    encode_features,
    fit_feature,
    place_tasks,
    read_row_weights,
    read_tasks,
    read_theta0,
    take_task_column,
)
from multitune.tabular.boosting_losses import Loss
from multitune.tabular.multitab_columns import Level, TableError, aligned, read_features
from multitune.tabular.network_inputs import categorical_places, validation_rows

Floats = npt.NDArray[np.float64]

SATURATED = 10.0  # |theta| beyond which a task's share of p or q is below 5e-5
THETA_DEVIATION = 0.1  # of theta before block 2, as published; equal ones would never part
SHOWN = 5  # unseen tasks that a message names


class RobustBooster(BaseEstimator):
    """Fits the three blocks to rows of many tasks. See ``RMTGBRegressor`` for the arguments.

    Attributes:
        tasks_: (T,), the tasks, sorted.
        theta_: (T,), learned; the sign has no meaning of its own, as p and q may change places.
        task_weight_: (T,), sigmoid(theta).
        outlier_score_: (T,), 2 sigmoid(|theta - median|) - 1, from 0 for a task in the middle to 1.
        boosted_: the trees, theta after every iteration and the losses.
        n_iter_: iterations of the three blocks.
        training_loss_, validation_loss_: weighted mean loss after every iteration, the blocks in turn.
        features_, n_features_in_, feature_names_in_: of the table.
    """

    def __init__(
        self,
        n_estimators: tuple[int, int, int] = (0, 100, 50),
        learning_rate: float = 0.1,
        max_depth: int = 3,
        *,
        engine: str = "hist",
        min_samples_leaf: int = 1,
        l2: float = 0.0,
        max_bins: int = 255,
        theta0: Any = None,
        n_init: int = 1,
        theta_learning_rate: float | None = None,
        theta_reduction: str = "sum",
        theta_standardize: bool = False,
        theta_l2: float = 0.0,
        theta_clip: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-7,
        task_column: str | int | None = None,
        unseen_task: str = "error",
        categorical_features: Any = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.engine = engine
        self.min_samples_leaf = min_samples_leaf
        self.l2 = l2
        self.max_bins = max_bins
        self.theta0 = theta0
        self.n_init = n_init
        self.theta_learning_rate = theta_learning_rate
        self.theta_reduction = theta_reduction
        self.theta_standardize = theta_standardize
        self.theta_l2 = theta_l2
        self.theta_clip = theta_clip
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.task_column = task_column
        self.unseen_task = unseen_task
        self.categorical_features = categorical_features
        self.random_state = random_state

    # What the regressor and the classifier make of y.
    _loss: Loss

    def _fit_targets(self, y: Any, kept: npt.NDArray[np.bool_]) -> Floats:
        """Remember what there is to y, of which rows have a weight, and return the targets of those, (rows, K)."""
        raise NotImplementedError

    def _targets(self, y: Any, rows: int) -> Floats:
        raise NotImplementedError

    def fit(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None, eval_set: Any = None) -> Self:
        """Learn what tasks share and what is their own.

        Args:
            X: (rows, features), a pandas, polars or Arrow table or a matrix. Words, categories and truth values are
                categorical; anything may be missing.
            y: (rows,), without gaps; (rows, outputs) for a regressor.
            task: (rows,), words or numbers; without, and without ``task_column``, all rows are one task.
            sample_weight: (rows,), not negative; a row of weight 0 is as if it were not there.
            eval_set: (X, y) or (X, y, task) to stop early by, in place of rows kept aside.

        Raises:
            TableError: every message says what is wrong where.
        """
        check_settings(self.get_params(deep=False))
        frame, names = read_features(X)
        weight = read_row_weights(sample_weight, len(frame))
        kept = weight > 0
        y_NK = self._fit_targets(y, kept)
        self.n_features_in_ = frame.shape[1]
        self._remember_names(names)
        frame, task = self._parted(frame, task)
        self._has_tasks = task is not None
        place, tasks = read_tasks(np.zeros(len(frame), dtype=int) if task is None else task, len(frame))
        if not kept.all():
            frame, weight = frame[kept], weight[kept]
            place, used = np.unique(place[kept], return_inverse=True)[::-1]
            tasks = [tasks[i] for i in used]
        if len(frame) < 2:
            raise TableError(f"n_samples = {len(frame)} is too few to learn from.", "X", "Give two rows or more.")
        self.tasks_ = np.array(tasks, dtype=None if len({type(one) for one in tasks}) == 1 else object)
        categorical = categorical_places(frame, self.categorical_features)
        shown = [str(name) for name in frame.columns]
        self.features_ = [
            fit_feature(column, shown[j], j in categorical) for j, (_, column) in enumerate(frame.items())
        ]
        self._boost(encode_features(frame, self.features_), place, y_NK, weight, eval_set)
        return self

    def _remember_names(self, names: list[str] | None) -> None:
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _parted(self, frame: pd.DataFrame, task: Any) -> tuple[pd.DataFrame, Any]:
        """Return the features and the tasks, from ``task`` or from the column of tasks."""
        if self.task_column is None:
            return frame, task
        if task is not None:
            raise TableError(
                f"Tasks are given twice: as task= and in the column {self.task_column!r}.",
                "task",
                "Give one of the two.",
            )
        return take_task_column(frame, self.task_column)

    def _boost(self, X: Floats, place: Places, y_NK: Floats, weight: Floats, eval_set: Any) -> None:
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        T = len(self.tasks_)
        if self.theta0 is not None:
            starts = [read_theta0(self.theta0, self._task_list())]
        else:
            starts = [THETA_DEVIATION * random.standard_normal(T) for _ in range(self.n_init)]
        validation = self._eval_rows(eval_set)
        if validation is None and self.early_stopping:
            aside = self._aside(place, y_NK, seed)
            validation = RowSet(place[aside], y_NK[aside], weight[aside], X[aside])
            X, place, y_NK, weight = X[~aside], place[~aside], y_NK[~aside], weight[~aside]
        order = np.argsort(place, kind="stable")
        training = RowSet(place[order], np.ascontiguousarray(y_NK[order]), weight[order])
        engine = self._engine(X, order, training, seed)
        self.boosted_ = boost(engine, self._loss, self._block_settings(training), training, validation, iter(starts))

    def _aside(self, place: Places, y_NK: Floats, seed: int) -> npt.NDArray[np.bool_]:
        """Return which rows are kept aside: a share of every task, and of its classes."""
        strata = np.column_stack([place, self._strata(y_NK)]).astype(np.float64)
        aside = validation_rows(strata, self.validation_fraction, seed)
        trained = np.bincount(place[~aside], minlength=len(self.tasks_))
        aside &= trained[place] > 0  # a task whose rows are all aside would learn nothing
        if not aside.any():
            raise TableError(
                f"Of {len(place)} rows none can be kept aside.",
                "validation_fraction",
                "Raise it, give an eval_set, or set early_stopping=False.",
            )
        return aside

    def _strata(self, y_NK: Floats) -> npt.NDArray[Any]:
        return np.zeros(len(y_NK))

    def _eval_rows(self, eval_set: Any) -> RowSet | None:
        if eval_set is None:
            return None
        if not isinstance(eval_set, (tuple, list)) or len(eval_set) not in (2, 3):
            raise TableError("It is not (X, y) or (X, y, task).", "eval_set", "Give features, targets and tasks.")
        X, place = self._encoded(eval_set[0], eval_set[2] if len(eval_set) == 3 else None)
        if (place < 0).any():
            raise TableError("It has tasks that the training rows have not.", "eval_set", "Leave their rows out.")
        return RowSet(place, self._targets(eval_set[1], len(X)), np.ones(len(X)), X)

    def _engine(self, X: Floats, order: Places, training: RowSet, seed: int) -> Engine:
        """Return what grows the trees, of the rows in an order by task."""
        starts = np.searchsorted(training.task, np.arange(len(self.tasks_) + 1))
        settings = TreeSettings(int(self.max_depth), int(self.min_samples_leaf), float(self.l2))
        categorical = [feature.levels is not None for feature in self.features_]
        if self.engine == "exact":
            if any(categorical):
                raise TableError(
                    f"The exact engine splits by numbers alone, and column '"
                    f"{self.features_[categorical.index(True)].name}' is a category.",
                    "engine",
                    'Use engine="hist", or encode the column.',
                )
            return ExactEngine(X[order], starts, training.weight, settings, seed)
        binned = bin_features(X, training.weight, categorical, seed, int(self.max_bins), order)
        return HistogramEngine(binned, starts, training.weight, settings)

    def _block_settings(self, training: RowSet) -> BlockSettings:
        n1, n2, n3 = (int(n) for n in self.n_estimators)
        unit = np.ones(training.y.shape[1])
        if self.theta_standardize:
            unit = self._variance(training)
        stops = self.early_stopping
        return BlockSettings(
            iterations=(n1, n2, n3),
            learning_rate=float(self.learning_rate),
            theta_learning_rate=float(
                self.learning_rate if self.theta_learning_rate is None else self.theta_learning_rate
            ),
            theta_reduction=self.theta_reduction,
            theta_l2=float(self.theta_l2),
            theta_clip=self.theta_clip,
            theta_unit=unit,
            patience=int(self.n_iter_no_change) if stops else None,
            tolerance=float(self.tol),
        )

    def _variance(self, training: RowSet) -> Floats:
        """Return by what a gradient on theta is divided to be free of the target's unit, (K,)."""
        return np.ones(training.y.shape[1])

    def _task_list(self) -> list[Level]:
        return list(self.tasks_.tolist())

    def _encoded(self, X: Any, task: Any) -> tuple[Floats, Places]:
        """Return the features as numbers and each row's place among the fitted tasks, -1 for others."""
        check_is_fitted(self, "features_")
        frame, names = read_features(X)
        fitted = list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
        frame = aligned(frame, names, fitted, self.n_features_in_, type(self).__name__)
        frame, task = self._parted(frame, task)
        encoded = encode_features(frame, self.features_)
        if task is None:
            if self._has_tasks:
                raise TableError(
                    f"{type(self).__name__} was fitted with {len(self.tasks_)} tasks, and no task is given.",
                    "task",
                    "Give task=, one label for every row.",
                )
            return encoded, np.zeros(len(frame), dtype=np.intp)
        if not self._has_tasks:
            raise TableError("It was fitted without tasks, and tasks are given.", "task", "Leave them out, or refit.")
        place, unseen = place_tasks(task, len(frame), self._task_list())
        if unseen:
            told = ", ".join(repr(one) for one in unseen[:SHOWN]) + (" ..." if len(unseen) > SHOWN else "")
            if self.unseen_task == "error":
                raise TableError(
                    f"{len(unseen)} tasks were not there at fit: {told}.",
                    "task",
                    'Fit with rows of them, or set unseen_task="shared" for the answer of a task in the middle.',
                )
            warnings.warn(f"Tasks that were not there at fit get what is shared: {told}.", UserWarning, stacklevel=4)
        return encoded, place

    def _values(self, X: Floats, place: Places) -> dict[str, Floats]:
        """Return what m, p, q and h say of every row."""
        values = {}
        for name in FUNCTIONS:
            trees = self.boosted_.trees[name]
            values[name] = np.zeros((len(X), trees.value.shape[1]))
            trees.add_to(values[name], X, place if name == "h" else None)
        return values

    def _side_of(self, theta_T: Floats, place: Places) -> Floats:
        """Return s of every row; the median task's for tasks that were not there at fit."""
        return sigmoid(np.append(theta_T, np.median(theta_T)))[place]

    def _raw(self, X: Any, task: Any) -> Floats:
        """Return F, (rows, K)."""
        encoded, place = self._encoded(X, task)
        return combined(self._values(encoded, place), self._side_of(self.theta_, place))

    def _staged_raw(self, X: Any, task: Any) -> Iterator[Floats]:
        encoded, place = self._encoded(X, task)
        trees = self.boosted_.trees
        values = {name: np.zeros((len(encoded), trees[name].value.shape[1])) for name in FUNCTIONS}
        n1, n2, n3 = self.boosted_.iterations
        theta = self.boosted_.theta_IT
        stages = [("m", i, 0) for i in range(n1)] + [("pq", i, i + 1) for i in range(n2)]
        for names, iteration, step in stages + [("h", i, n2) for i in range(n3)]:
            for name in names:
                own = place if name == "h" else None
                trees[name].iteration(iteration).add_to(values[name], encoded, own)
            yield combined(values, self._side_of(theta[step], place))

    def parts(self, X: Any, task: Any = None) -> dict[str, Floats]:
        """Return the three blocks' shares of F, (rows, outputs) each; they add up to it.

        Returns:
            "shared": m; "robust": (1 - s) q + s p; "own": h.
        """
        encoded, place = self._encoded(X, task)
        values = self._values(encoded, place)
        s = self._side_of(self.theta_, place)[:, None]
        return {
            "shared": values["m"],
            "robust": np.asarray((1 - s) * values["q"] + s * values["p"]),
            "own": values["h"],
        }

    @property
    def theta_(self) -> Floats:
        return self._fitted().theta

    @property
    def task_weight_(self) -> Floats:
        return sigmoid(self.theta_)

    @property
    def outlier_score_(self) -> Floats:
        return np.asarray(np.tanh(np.abs(self.theta_ - np.median(self.theta_)) / 2))  # = 2 sigmoid(|.|) - 1

    @property
    def n_iter_(self) -> tuple[int, int, int]:
        return self._fitted().iterations

    @property
    def training_loss_(self) -> list[float]:
        return self._fitted().training_loss

    @property
    def validation_loss_(self) -> list[float]:
        return self._fitted().validation_loss

    def _fitted(self) -> Boosted:
        if not hasattr(self, "boosted_"):
            raise AttributeError(f"{type(self).__name__} is not fitted; call fit first.")
        return self.boosted_

    def task_table(self) -> pd.DataFrame:
        """Return one row per task, those that belong least first: theta, weight, outlier_score.

        Warns where theta has run to the end of the sigmoid, as it does for targets that are large in their unit: how
        far it ran there depends on its random start.
        """
        middle = float(np.median(np.abs(self.theta_)))
        if middle > SATURATED and not self.theta_standardize:
            warnings.warn(
                f"Half of the tasks have |theta| above {middle:.0f}, where the sigmoid is flat, so outlier scores say "
                "little; fit with theta_standardize=True.",
                UserWarning,
                stacklevel=2,
            )
        return self._task_table()

    def _task_table(self) -> pd.DataFrame:
        table = pd.DataFrame(
            {"theta": self.theta_, "weight": self.task_weight_, "outlier_score": self.outlier_score_},
            index=pd.Index(self.tasks_, name="task"),
        )
        return table.sort_values("outlier_score", ascending=False, kind="stable")

    def score_per_task(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> pd.Series:
        """Return R2, or accuracy of a classifier, of every task that has rows; nan where a task's R2 is undefined."""
        raise NotImplementedError

    def score(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> float:
        """Return the mean over the tasks of R2, or of accuracy; tasks without a defined one are left out."""
        return float(self.score_per_task(X, y, task, sample_weight).mean())

    def _row_tasks(self, X: Any, task: Any) -> pd.Series:
        """Return every row's task as a label, for tables by task."""
        frame, _ = read_features(X)
        _, task = self._parted(frame, task)
        place, tasks = read_tasks(np.zeros(len(frame), dtype=int) if task is None else task, len(frame))
        return pd.Series(pd.Index(tasks)[place])

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted estimator as a folder of JSON and safetensors; no pickle. See ``boosting_saving``."""
        from multitune.tabular.boosting_saving import save_booster

        check_is_fitted(self, "boosted_")
        save_booster(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Return the estimator that ``save`` wrote.

        Raises:
            TableError: no such folder, written by a newer version, damaged, or of another estimator.
        """
        from multitune.tabular.boosting_saving import load_booster

        return load_booster(cls, path)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = self.engine == "hist"
        tags.target_tags.required = True
        return tags
