"""Which way of sharing between tasks is worth it on one's own table: every way on the same held-out rows.

Shape legend: ``N`` held-out rows, ``T`` tasks, ``M`` methods, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import clone

from multitune.errors import nearest
from multitune.tabular.boosting_inputs import read_classes, read_numbers, read_tasks, take_task_column
from multitune.tabular.multitab_columns import TableError, read_features
from multitune.tabular.rmtgb import RMTGBClassifier, RMTGBRegressor
from multitune.tabular.task_baselines import KINDS, TaskBaseline, kind_of_target

Floats = npt.NDArray[np.float64]

REFERENCE = "LightGBM per task"
RESAMPLES = 1000
NUMBERS = 200_000_000  # that all resamples may read together, so that intervals take seconds
TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class TaskComparison:
    """How well every method does on rows that it was not fitted to.

    Attributes:
        metric: "rmse", lower is better, or "accuracy", higher is better.
        per_task: (T, M) table of the metric.
        summary: one row per method: the ``metric`` over all rows; ``mean`` over tasks; ``rank`` among the methods, mean
            over tasks, ties averaged; ``saved``, ``low``, ``high``: by how many per cent its squared error, or its
            errors, are fewer than the reference's over all rows, with the 95 % interval; ``gain``, ``gain_low``,
            ``gain_high``: the multitask gain, the mean over tasks of the relative improvement of the metric over the
            reference, in per cent, which a task explodes on which the reference hardly errs; ``best``: tasks on which
            no other method is better.
        recommended: the name of a method.
        advice: why, in a sentence or two.
        outliers: the outlier score of every task where R-MTGB was fitted, largest first.
    """

    metric: str
    per_task: pd.DataFrame
    summary: pd.DataFrame
    recommended: str
    advice: str
    outliers: pd.Series | None

    def __str__(self) -> str:
        return f"{self.summary.round(3).to_string()}\n\n{self.advice}"


def standard_methods(kind: str, random_state: int = 0) -> dict[str, Any]:
    """Return the methods that are compared, the plainest first; each has 150 iterations, of depth 3 but for stumps.

    Args:
        kind: "regression" or "classification".
    """
    methods: dict[str, Any] = {}
    for engine, name in (("lightgbm", "LightGBM"), ("sklearn", "scikit-learn")):
        for sharing in ("per_task", "pooled", "task_as_feature"):
            baseline = TaskBaseline(engine, sharing, kind=kind, random_state=random_state)
            methods[f"{name} {sharing.replace('_', ' ')}"] = baseline
    booster = RMTGBClassifier if kind == "classification" else RMTGBRegressor
    methods["MTGB"] = booster((50, 0, 100), random_state=random_state)
    methods["R-MTGB"] = booster((0, 100, 50), random_state=random_state)
    methods["R-MTGB stumps"] = booster((50, 50, 50), max_depth=1, random_state=random_state)
    return methods


def compare_tasks(
    X: Any,
    y: Any,
    task: Any = None,
    *,
    task_column: str | int | None = None,
    test: tuple[Any, Any, Any] | None = None,
    folds: int = 5,
    kind: str = "auto",
    methods: Mapping[str, Any] | None = None,
    reference: str = REFERENCE,
    random_state: int = 0,
) -> TaskComparison:
    """Return how well the ways of sharing between tasks do, and which one to use.

    The advice is the plainest method that is not measurably worse than the best: the interval of the paired difference
    of their losses holds 0. Intervals come from resampling the held-out rows of every task; they tell of the rows, and
    not of other draws of the training rows.

    Args:
        X, y, task, task_column: as of ``RMTGBRegressor.fit``.
        test: (X, y, task) to measure on; without, every row is held out once, in ``folds`` folds within each task.
            With ``task_column`` the third is None.
        kind: "regression", "classification", or "auto" (see ``kind_of_target``).
        methods: estimators with ``fit(X, y, task=)`` and ``predict(X, task=)`` by name, the plainest first; the
            standard ones without.
        reference: the method that gains are measured against.

    Raises:
        TableError: what is refused at fit; fewer than 2 folds; an unknown reference.
    """
    frame, task = _parted(X, task, task_column)
    kind = kind_of_target(y) if kind == "auto" else kind
    if kind not in KINDS:
        raise TableError(f"kind is {kind!r}.", "kind", f'It is "auto", {" or ".join(KINDS)}.')
    methods = standard_methods(kind, random_state) if methods is None else methods
    if reference not in methods:
        raise TableError(f"There is no method '{reference}'.{nearest(reference, methods)}", "reference", "Name one.")
    label = _labels(y, len(frame), kind)
    place, tasks = read_tasks(task, len(frame))
    names = pd.Series(pd.Index(tasks)[place])
    fitted: dict[str, Any] = {}
    if test is None:
        fold = _folds(place, folds, random_state)
        predicted: dict[str, npt.NDArray[Any]] = {}
        for name, method in methods.items():
            out = np.empty(len(label), dtype=label.dtype)
            for number in range(folds):
                aside = fold == number
                fitted[name] = clone(method).fit(frame[~aside], label[~aside], task=names[~aside].to_numpy())
                out[aside] = fitted[name].predict(frame[aside], task=names[aside].to_numpy())
            predicted[name] = out
        truth = label
    else:
        test_frame, test_task = _parted(test[0], test[2], task_column)
        truth = _labels(test[1], len(test_frame), kind)
        place, tasks = read_tasks(test_task, len(test_frame))
        test_names = pd.Index(tasks)[place].to_numpy()
        for name, method in methods.items():
            fitted[name] = clone(method).fit(frame, label, task=names.to_numpy())
        predicted = {name: model.predict(test_frame, task=test_names) for name, model in fitted.items()}
    loss_NM = np.column_stack([_loss(truth, predicted[name], kind) for name in methods])
    return _judged(loss_NM, place, tasks, list(methods), reference, kind, random_state, _outliers(fitted))


def _parted(X: Any, task: Any, task_column: str | int | None) -> tuple[pd.DataFrame, Any]:
    frame, _ = read_features(X)
    if task_column is not None:
        frame, task = take_task_column(frame, task_column)
    if task is None:
        raise TableError("No tasks are given.", "task", "Give task=, or the name of their column as task_column=.")
    return frame.reset_index(drop=True), task


def _labels(y: Any, rows: int, kind: str) -> npt.NDArray[Any]:
    if kind == "classification":
        return read_classes(y, rows, "compare_tasks")
    numbers, one_dimensional = read_numbers(y, rows, "compare_tasks")
    if not one_dimensional:
        raise TableError(f"There are {numbers.shape[1]} targets.", "y", "Compare on one target at a time.")
    return numbers[:, 0]


def _folds(place: npt.NDArray[np.intp], folds: int, seed: int) -> npt.NDArray[np.intp]:
    """Return every row's fold: each task is spread evenly, and a task of one row is held out by none."""
    if not 2 <= folds <= len(place):
        raise TableError(f"There are {folds} folds of {len(place)} rows.", "folds", "Give 2 or more.")
    random = np.random.default_rng(seed)
    rows = np.bincount(place)
    lonely = np.flatnonzero(rows < 2)
    if len(lonely):
        raise TableError(
            f"{len(lonely)} tasks have a single row, which cannot be learned from and held out at once.",
            "task",
            "Leave them out of the comparison, or give test=.",
        )
    fold = np.empty(len(place), dtype=np.intp)
    for r, count in enumerate(rows):
        fold[place == r] = random.permutation((np.arange(count) + r) % folds)
    return fold


def _loss(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], kind: str) -> Floats:
    """Return the squared error, or whether it is wrong, of every row."""
    if kind == "classification":
        return (truth != predicted).astype(np.float64)
    return np.asarray((truth - predicted) ** 2)


def _outliers(fitted: Mapping[str, Any]) -> pd.Series | None:
    boosters = [model for model in fitted.values() if getattr(model, "n_iter_", (0, 0, 0))[1]]
    return boosters[0]._task_table()["outlier_score"] if boosters else None


def _judged(
    loss_NM: Floats,
    place: npt.NDArray[np.intp],
    tasks: list[Any],
    names: list[str],
    reference: str,
    kind: str,
    seed: int,
    outliers: pd.Series | None,
) -> TaskComparison:
    rows_T = np.bincount(place, minlength=len(tasks))
    mean_TM = np.stack([loss_NM[place == r].mean(axis=0) for r in range(len(tasks))])
    mean_RTM = _resampled(loss_NM, place, len(tasks), seed)
    share_T = rows_T / rows_T.sum()
    total_M, total_RM = share_T @ mean_TM, np.einsum("t,rtm->rm", share_T, mean_RTM)
    base = names.index(reference)
    metric_TM, metric_RTM = _metric(mean_TM, kind), _metric(mean_RTM, kind)
    low, high = np.percentile(_per_cent(total_RM[:, [base]] - total_RM, total_RM[:, [base]]), TAILS, axis=0)
    sign = -1 if kind == "regression" else 1
    gain_RM = _per_cent(sign * (metric_RTM - metric_RTM[:, :, [base]]), metric_RTM[:, :, [base]]).mean(axis=1)
    gain_low, gain_high = np.percentile(gain_RM, TAILS, axis=0)
    metric = "rmse" if kind == "regression" else "accuracy"
    per_task = pd.DataFrame(metric_TM, index=pd.Index(tasks, name="task"), columns=names)
    summary = pd.DataFrame(
        {
            metric: _metric(total_M, kind),
            "mean": metric_TM.mean(axis=0),
            "rank": per_task.rank(axis=1, ascending=kind == "regression").mean(),
            "saved": _per_cent(total_M[base] - total_M, total_M[[base]]),
            "low": low,
            "high": high,
            "gain": _per_cent(sign * (metric_TM - metric_TM[:, [base]]), metric_TM[:, [base]]).mean(axis=0),
            "gain_low": gain_low,
            "gain_high": gain_high,
            "best": (mean_TM == mean_TM.min(axis=1, keepdims=True)).sum(axis=0),
        },
        index=pd.Index(names, name="method"),
    )
    best = int(total_M.argmin())
    worse_low = np.percentile(total_RM - total_RM[:, [best]], TAILS[0], axis=0)
    chosen = int(np.flatnonzero(worse_low <= 0)[0])  # the plainest one: methods stand in that order
    advice = _advice(summary, len(tasks), names[chosen], names[best], reference, metric, outliers)
    return TaskComparison(metric, per_task, summary, names[chosen], advice, outliers)


def _metric(mean_loss: Floats, kind: str) -> Floats:
    return np.sqrt(mean_loss) if kind == "regression" else 1 - mean_loss


def _per_cent(part: Floats, whole: Floats) -> Floats:
    """Return 100 part / whole; 0 where the whole is 0, as nothing can be gained over a perfect reference."""
    return np.asarray(100 * np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))


def _resampled(loss_NM: Floats, place: npt.NDArray[np.intp], tasks: int, seed: int) -> Floats:
    """Return mean losses over resampled rows of every task, (R, T, M): all methods on the same rows."""
    resamples = int(np.clip(NUMBERS // loss_NM.size, 100, RESAMPLES))
    random = np.random.default_rng(seed)
    means = np.empty((resamples, tasks, loss_NM.shape[1]))
    for r in range(tasks):
        own = loss_NM[place == r]
        for number in range(resamples):
            means[number, r] = own[random.integers(0, len(own), len(own))].mean(axis=0)
    return means


def _advice(
    summary: pd.DataFrame, tasks: int, chosen: str, best: str, reference: str, metric: str, outliers: pd.Series | None
) -> str:
    line = summary.loc[chosen]
    loss = "squared error" if metric == "rmse" else "errors"
    told = f"Use {chosen}: {metric} {line[metric]:.4g}"
    if chosen != reference:
        told += f", {line['saved']:.1f} % [{line['low']:.1f}, {line['high']:.1f}] less {loss} than {reference}"
    told += f", the best on {int(line['best'])} of {tasks} tasks."
    if best != chosen:
        told += f" {best} has {metric} {summary.loc[best, metric]:.4g}, which is not measurably better."
    if chosen.startswith("R-MTGB") and outliers is not None:
        first = ", ".join(f"{task} ({score:.2f})" for task, score in outliers.head(3).items())
        told += f" The tasks that belong least: {first}."
    return told
