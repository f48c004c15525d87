"""R-MTGB: gradient-boosted trees for many related tasks, some of which may not belong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score

from multitune.tabular.boosting_blocks import RowSet
from multitune.tabular.boosting_estimator import RobustBooster
from multitune.tabular.boosting_inputs import read_classes, read_numbers, read_row_weights
from multitune.tabular.boosting_losses import SoftmaxLoss, SquaredLoss, softmax
from multitune.tabular.multitab_columns import TableError

Floats = npt.NDArray[np.float64]


class RMTGBRegressor(RegressorMixin, RobustBooster):
    """Robust multi-task gradient boosting of numbers, one column or several.

    A row x of task r is answered by ``m(x) + (1 - s_r) q(x) + s_r p(x) + h_r(x)`` with ``s_r = sigmoid(theta_r)``: what
    all tasks share, two functions between which every task finds its place, and the task's own part, learned in this
    order, in three blocks. All start at 0. A task that follows another function than most ends up elsewhere between the
    two (``outlier_score_``).

    Source: Robust Multi-Task Gradient Boosting, Expert Systems with Applications, 2025.

    Args:
        n_estimators: iterations (n1, n2, n3) of the blocks. (0, 100, 50) does best where some tasks do not belong: a
            first block that comes before would learn from them too. (n1, 0, n3) is MTGB, (0, 0, n3) one booster per
            task, (n1, 0, 0) one booster for all.
        learning_rate: of trees; 0.1 as published for real data.
        max_depth: levels of splits; the published runs have 1.
        engine: "hist" grows all trees of an iteration together on binned features; "exact" grows them by scikit-learn,
            one after another, and takes no categories.
        min_samples_leaf: rows that a leaf has at least, whatever their weight.
        l2: a leaf of weight W is shrunk by W / (W + l2).
        max_bins: of a numeric feature, at most 255.
        theta0: theta before block 2: a mapping by task or a sequence in the order of the sorted tasks; 0.1 times a
            normal number each without. Equal ones stay equal for one iteration, and zeros for ever.
        n_init: random theta0 that are tried; the run with the best validation (else training) loss is kept.
        theta_learning_rate: None for that of the trees.
        theta_reduction: "sum" of the gradient over a task's rows, as published, or "mean", times the rows of the median
            task, so that large tasks do not run to the end of the sigmoid at once.
        theta_standardize: theta's gradient divided by the variance of y, so that it does not depend on y's unit.
        theta_l2: pulls theta towards 0.
        theta_clip: bounds |theta|.
        early_stopping: ends each block ``n_iter_no_change`` iterations after its best validation loss, and goes back to
            that one. Rows for it: ``eval_set``, or a share of each task, ``validation_fraction``.
        validation_fraction, n_iter_no_change, tol: see ``early_stopping``.
        task_column: name or place of the column of X that holds the tasks, for pipelines and searches; the other way is
            ``task=`` of every method.
        unseen_task: at prediction, "error", or "shared": m and the mixture of the median task, with a warning.
        categorical_features: "auto" for columns that hold no numbers, or names or places of further ones.
        random_state: of theta0, of the rows kept aside, and of the exact engine's ties.
    """

    _loss = SquaredLoss()
    score = RobustBooster.score  # of every task, and not of all rows as the mixin has it

    def _fit_targets(self, y: Any, kept: npt.NDArray[np.bool_]) -> Floats:
        y_NK, self._one_dimensional = read_numbers(y, len(kept), type(self).__name__)
        self.n_outputs_ = y_NK.shape[1]
        return y_NK[kept]

    def _targets(self, y: Any, rows: int) -> Floats:
        y_NK, _ = read_numbers(y, rows, type(self).__name__)
        if y_NK.shape[1] != self.n_outputs_:
            raise TableError(
                f"There are {y_NK.shape[1]} targets; at fit there were {self.n_outputs_}.", "y", "Give the same."
            )
        return y_NK

    def _variance(self, training: RowSet) -> Floats:
        mean = np.average(training.y, axis=0, weights=training.weight)
        variance = np.average((training.y - mean) ** 2, axis=0, weights=training.weight)
        return np.where(variance > 0, variance, 1.0)

    def _shaped(self, F_NK: Floats) -> Floats:
        return F_NK[:, 0] if self._one_dimensional else F_NK

    def predict(self, X: Any, task: Any = None) -> Floats:
        """Return the answer of every row, (rows,) or (rows, outputs) as y was at fit."""
        return self._shaped(self._raw(X, task))

    def staged_predict(self, X: Any, task: Any = None) -> Iterator[Floats]:
        """Yield the answers after every iteration of the three blocks in turn."""
        for F_NK in self._staged_raw(X, task):
            yield self._shaped(F_NK)

    def score_per_task(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> pd.Series:
        """Return R2 of every task that has rows; nan of a task with a single row."""
        predicted = self._raw(X, task)
        y_NK, weight = self._targets(y, len(predicted)), read_row_weights(sample_weight, len(predicted))
        by_task = self._row_tasks(X, task)
        scores = {}
        for one, rows in by_task.groupby(by_task).groups.items():
            here = rows.to_numpy()
            alone = len(here) < 2
            scores[one] = np.nan if alone else r2_score(y_NK[here], predicted[here], sample_weight=weight[here])
        return pd.Series(scores, name="r2")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class RMTGBClassifier(ClassifierMixin, RobustBooster):
    """Robust multi-task gradient boosting of two or more classes.

    Every class has a column of its own, also of two, and the loss is the cross-entropy of their softmax. A task may
    have rows of some of the classes only. Arguments and blocks are those of ``RMTGBRegressor``; ``theta_standardize``
    changes nothing here.

    Attributes:
        classes_: sorted.
    """

    _loss = SoftmaxLoss()
    score = RobustBooster.score

    def _fit_targets(self, y: Any, kept: npt.NDArray[np.bool_]) -> Floats:
        labels = read_classes(y, len(kept), type(self).__name__)[kept]
        self.classes_, code = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise TableError(
                f"All labels are of one class, '{self.classes_[0]}'.", "y", "Give rows of two classes or more."
            )
        return np.asarray(np.eye(len(self.classes_))[code])

    def _targets(self, y: Any, rows: int) -> Floats:
        labels = read_classes(y, rows, type(self).__name__)
        code = np.searchsorted(self.classes_, labels).clip(max=len(self.classes_) - 1)
        new = self.classes_[code] != labels
        if new.any():
            raise TableError(f"The class '{labels[new][0]}' was not there at fit.", "y", "Fit with rows of it.")
        return np.asarray(np.eye(len(self.classes_))[code])

    def _strata(self, y_NK: Floats) -> npt.NDArray[Any]:
        return np.asarray(y_NK.argmax(axis=1))

    def predict_proba(self, X: Any, task: Any = None) -> Floats:
        """Return the probability of every class, (rows, classes)."""
        return softmax(self._raw(X, task))

    def predict(self, X: Any, task: Any = None) -> npt.NDArray[Any]:
        """Return the likeliest class of every row."""
        best_N = self._raw(X, task).argmax(axis=1)
        return np.asarray(self.classes_[best_N])

    def staged_predict_proba(self, X: Any, task: Any = None) -> Iterator[Floats]:
        """Yield the probabilities after every iteration of the three blocks in turn."""
        for F_NK in self._staged_raw(X, task):
            yield softmax(F_NK)

    def staged_predict(self, X: Any, task: Any = None) -> Iterator[npt.NDArray[Any]]:
        """Yield the likeliest classes after every iteration of the three blocks in turn."""
        for F_NK in self._staged_raw(X, task):
            yield self.classes_[F_NK.argmax(axis=1)]

    def score_per_task(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> pd.Series:
        """Return the accuracy on every task that has rows."""
        predicted = self._raw(X, task).argmax(axis=1)
        code, weight = self._targets(y, len(predicted)).argmax(axis=1), read_row_weights(sample_weight, len(predicted))
        by_task = self._row_tasks(X, task)
        scores = {}
        for one, rows in by_task.groupby(by_task).groups.items():
            here = rows.to_numpy()
            scores[one] = accuracy_score(code[here], predicted[here], sample_weight=weight[here])
        return pd.Series(scores, name="accuracy")
