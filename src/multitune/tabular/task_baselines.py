"""What people use today for rows of many tasks: one booster each, one for all, or one with the task as a category."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from multitune.errors import MultituneError
from multitune.tabular.boosting_inputs import (
    check_settings,
    encode_features,
    fit_feature,
    place_tasks,
    read_classes,
    read_numbers,
    read_row_weights,
    read_tasks,
)
from multitune.tabular.multitab_columns import TableError, aligned, is_numeric, read_features
from multitune.tabular.network_inputs import categorical_places

Floats = npt.NDArray[np.float64]

ENGINES = ("lightgbm", "sklearn")
KINDS = ("regression", "classification")
SHARING = ("per_task", "pooled", "task_as_feature")
MOST_TASKS = 255  # levels of a category that scikit-learn's booster takes


def kind_of_target(y: Any) -> str:
    """Return "classification" for words, truth values and two distinct numbers, "regression" for other numbers."""
    column = y if isinstance(y, pd.Series) else pd.Series(np.asarray(y))
    return "regression" if is_numeric(column) and column.nunique() > 2 else "classification"


class TaskBaseline(BaseEstimator):
    """A booster of another library, as it is used for rows of many tasks.

    Args:
        engine: "lightgbm", or "sklearn" for scikit-learn's histogram booster.
        sharing: "per_task", "pooled" (the task is not looked at), or "task_as_feature" (a category among the others).
        kind: "regression", "classification", or "auto" (see ``kind_of_target``).
        n_estimators, learning_rate, max_depth, min_samples_leaf: as the engine's own; trees have 2^max_depth leaves.
        categorical_features: as of ``RMTGBRegressor``.
        random_state: of the engine.

    Attributes:
        tasks_: sorted. classes_: of a classifier.
    """

    def __init__(
        self,
        engine: str = "lightgbm",
        sharing: str = "per_task",
        *,
        kind: str = "auto",
        n_estimators: int = 150,
        learning_rate: float = 0.1,
        max_depth: int = 3,
        min_samples_leaf: int = 5,
        categorical_features: Any = "auto",
        random_state: int = 0,
    ) -> None:
        self.engine = engine
        self.sharing = sharing
        self.kind = kind
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.categorical_features = categorical_features
        self.random_state = random_state

    def fit(self, X: Any, y: Any, task: Any, sample_weight: Any = None) -> Self:
        """Learn each row's label from its features and, as ``sharing`` says, its task.

        Raises:
            TableError: as of ``RMTGBRegressor.fit``; more tasks than a category of the engine may have.
        """
        self._check()
        frame, names = read_features(X)
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = frame.shape[1]
        kept = read_row_weights(sample_weight, len(frame)) > 0
        weight = read_row_weights(sample_weight, len(frame))[kept]
        self._classify = (kind_of_target(y) if self.kind == "auto" else self.kind) == "classification"
        if self._classify:
            self.classes_, label = np.unique(read_classes(y, len(frame), "TaskBaseline")[kept], return_inverse=True)
        else:
            numbers, one_dimensional = read_numbers(y, len(frame), "TaskBaseline")
            if not one_dimensional:
                raise TableError(f"There are {numbers.shape[1]} targets.", "y", "Give one; the engines learn one each.")
            label = numbers[kept, 0]
        place, tasks = read_tasks(task, len(frame))
        self.tasks_ = np.array(tasks, dtype=None if len({type(one) for one in tasks}) == 1 else object)
        if self.sharing == "task_as_feature" and self.engine == "sklearn" and len(tasks) > MOST_TASKS:
            what = f"{len(tasks)} tasks are more than the {MOST_TASKS} levels that scikit-learn's booster takes."
            raise TableError(what, "task", "Use engine='lightgbm'.")
        categorical = categorical_places(frame, self.categorical_features)
        shown = [str(name) for name in frame.columns]
        self.features_ = [fit_feature(frame.iloc[:, j], shown[j], j in categorical) for j in range(len(shown))]
        X_ND, place = self._with_task(encode_features(frame, self.features_)[kept], place[kept])
        models = len(tasks) if self.sharing == "per_task" else 1
        self.models_ = [self._fit_one(X_ND[place == r], label[place == r], weight[place == r]) for r in range(models)]
        return self

    def _check(self) -> None:
        for name, allowed in (("engine", ENGINES), ("sharing", SHARING), ("kind", ("auto", *KINDS))):
            if getattr(self, name) not in allowed:
                raise TableError(f"{name} is {getattr(self, name)!r}.", name, f"It is one of {', '.join(allowed)}.")
        check_settings({name: getattr(self, name) for name in ("learning_rate", "max_depth", "min_samples_leaf")})

    def _with_task(self, X: Floats, place: npt.NDArray[np.intp]) -> tuple[Floats, npt.NDArray[np.intp]]:
        """Return the features that a model sees, and which model a row belongs to."""
        if self.sharing == "task_as_feature":
            X = np.column_stack([X, place.astype(np.float64)])
        return X, place if self.sharing == "per_task" else np.zeros_like(place)

    def _fit_one(self, X: Floats, label: npt.NDArray[Any], weight: Floats) -> Any:
        """Return a fitted booster, or the one answer where there is nothing to learn."""
        if len(label) < 2 or len(np.unique(label)) == 1:
            return label[0] if len(label) else None
        categorical = [place for place, feature in enumerate(self.features_) if feature.levels is not None]
        if self.sharing == "task_as_feature":
            categorical.append(len(self.features_))
        more = {"categorical_feature": categorical or "auto"} if self.engine == "lightgbm" else {}
        return self._booster(categorical).fit(X, label, sample_weight=weight, **more)

    def _booster(self, categorical: list[int]) -> Any:
        common: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "max_depth": self.max_depth,
            "random_state": self.random_state,
        }
        if self.engine == "sklearn":
            from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

            made: Callable[..., Any] = (
                HistGradientBoostingClassifier if self._classify else HistGradientBoostingRegressor
            )
            return made(
                **common,
                max_iter=self.n_estimators,
                max_leaf_nodes=None,
                min_samples_leaf=self.min_samples_leaf,
                categorical_features=categorical or None,
                early_stopping=False,
            )
        try:
            from lightgbm import LGBMClassifier, LGBMRegressor
        except ModuleNotFoundError:
            raise MultituneError(
                "LightGBM is not installed.", "engine", "Install it with `pip install 'multitune[tables]'`."
            ) from None
        made = LGBMClassifier if self._classify else LGBMRegressor
        return made(
            **common,
            n_estimators=self.n_estimators,
            num_leaves=2**self.max_depth,
            min_child_samples=self.min_samples_leaf,
            min_data_per_group=self.min_samples_leaf,  # so that tasks of fewer than 100 rows are levels of their own
            n_jobs=1,
            deterministic=True,
            verbose=-1,
        )

    def _answers(self, X: Any, task: Any, answer: Callable[[Any, Floats], Floats], width: int) -> Floats:
        check_is_fitted(self, "models_")
        frame, names = read_features(X)
        fitted = list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None
        frame = aligned(frame, names, fitted, self.n_features_in_, "TaskBaseline")
        place, unseen = place_tasks(task, len(frame), list(self.tasks_.tolist()))
        if unseen and self.sharing != "pooled":
            raise TableError(
                f"{len(unseen)} tasks were not there at fit, {unseen[0]!r} among them.", "task", "Fit with rows of it."
            )
        X_ND, model = self._with_task(encode_features(frame, self.features_), place)
        out = np.empty((len(frame), width))
        for number in np.unique(model):
            here = model == number
            out[here] = answer(self.models_[number], X_ND[here])
        return out

    def predict(self, X: Any, task: Any) -> npt.NDArray[Any]:
        """Return the answer of every row."""
        check_is_fitted(self, "models_")
        if self._classify:
            return np.asarray(self.classes_[self.predict_proba(X, task).argmax(axis=1)])

        def answer(model: Any, X_ND: Floats) -> Floats:
            return np.asarray(model.predict(X_ND))[:, None] if hasattr(model, "predict") else np.full((1, 1), model)

        return self._answers(X, task, answer, 1)[:, 0]

    def predict_proba(self, X: Any, task: Any) -> Floats:
        """Return the probability of every class, (rows, classes); 0 of classes that a task never had."""
        check_is_fitted(self, "models_")

        def answer(model: Any, X_ND: Floats) -> Floats:
            out = np.zeros((len(X_ND), len(self.classes_)))
            if hasattr(model, "predict_proba"):
                out[:, model.classes_] = model.predict_proba(X_ND)
            else:
                out[:, model] = 1.0
            return out

        return self._answers(X, task, answer, len(self.classes_))
