"""What the boosters are given, checked and turned into arrays: features, tasks, targets, weights, settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from multitune.errors import nearest
from multitune.tabular.boosting_bins import MOST_BINS
from multitune.tabular.multitab_columns import Level, TableError, as_frame, coded, numbers_of
from multitune.tabular.network_inputs import read_weights

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Feature:
    """A fitted feature.

    Attributes:
        name: of the column, or its place as a word.
        levels: of a category, in the order of their codes 1, 2, ...; None for a numeric feature.
    """

    name: str
    levels: tuple[Level, ...] | None = None


def fit_feature(column: pd.Series, name: str, categorical: bool) -> Feature:
    """Return what is remembered of a feature.

    A category has at most 255 levels, the most frequent ones; the others count as missing.
    """
    if not categorical:
        return Feature(name)
    places, levels = coded(column, f"column '{name}'")
    rows = np.bincount(places[places >= 0], minlength=len(levels))
    order = sorted(range(len(levels)), key=lambda i: (-rows[i], isinstance(levels[i], str), levels[i]))
    kept = [levels[i] for i in order[:MOST_BINS]]
    return Feature(name, tuple(sorted(kept, key=lambda level: (isinstance(level, str), level))))


def encode_features(frame: pd.DataFrame, features: Sequence[Feature]) -> Floats:
    """Return (rows, features): numbers, and codes of categories from 1 on; nan where missing or unknown.

    Raises:
        TableError: infinite, or a value that is no number in a numeric column.
    """
    X = np.empty((len(frame), len(features)))
    for place, (feature, (_, column)) in enumerate(zip(features, frame.items(), strict=True)):
        where = f"column '{feature.name}'"
        if feature.levels is None:
            X[:, place] = numbers_of(column, where)
            continue
        code_of = {level: float(code) for code, level in enumerate(feature.levels, start=1)}
        places, levels = coded(column, where)
        X[:, place] = np.array([*(code_of.get(level, math.nan) for level in levels), math.nan])[places]
    return X


def take_task_column(frame: pd.DataFrame, column: Any) -> tuple[pd.DataFrame, pd.Series]:
    """Return the table without the column of tasks, and that column.

    Raises:
        TableError: there is no such column.
    """
    names = list(frame.columns)
    if isinstance(column, (int, np.integer)) and not isinstance(column, bool) and -len(names) <= column < len(names):
        place = int(column) % len(names)
    elif column in names:
        place = names.index(column)
    else:
        hint = nearest(str(column), map(str, names))
        raise TableError(f"There is no column {column!r}.{hint}", "task_column", f"The columns are {names}.")
    if len(names) == 1:
        raise TableError("Beside the tasks there is no feature.", "X", "Give at least one more column.")
    return frame.drop(columns=names[place]), frame.iloc[:, place]


def read_tasks(task: Any, rows: int) -> tuple[Places, list[Level]]:
    """Return every row's place in a sorted list of tasks, and that list. A task's label is a word or a number.

    Raises:
        TableError: not one for every row, or missing.
    """
    frame = as_frame(task)
    if frame is not None and frame.shape[1] == 1:
        task = frame.iloc[:, 0]
    elif frame is None:
        array = np.asarray(task, dtype=object)
        if array.ndim != 1:
            raise TableError(f"The tasks have {array.ndim} dimensions.", "task", "Give one label for every row.")
        task = pd.Series(array).infer_objects()
    else:
        raise TableError(f"The tasks have {frame.shape[1]} columns.", "task", "Give one label for every row.")
    if len(task) != rows:
        raise TableError(f"There are {len(task)} tasks for {rows} rows.", "task", "Give one label for every row of X.")
    places, levels = coded(task, "task")
    if (places < 0).any():
        raise TableError(
            f"A task is missing, first in row {int((places < 0).argmax())}.",
            "task",
            "Give every row a task; a word of your own for those that belong to none is enough.",
        )
    order = sorted(range(len(levels)), key=lambda i: (isinstance(levels[i], str), levels[i]))
    rank = np.empty(len(levels), dtype=np.intp)
    rank[order] = np.arange(len(levels))
    return rank[places], [levels[i] for i in order]


def place_tasks(task: Any, rows: int, tasks: Sequence[Level]) -> tuple[Places, list[Level]]:
    """Return every row's place among the fitted tasks, -1 for others, and those others."""
    places, levels = read_tasks(task, rows)
    place_of = {level: place for place, level in enumerate(tasks)}
    to = np.array([place_of.get(level, -1) for level in levels], dtype=np.intp)
    return to[places], [level for level in levels if level not in place_of]


def read_numbers(y: Any, rows: int, who: str) -> tuple[Floats, bool]:
    """Return regression targets, (rows, K), and whether they were one-dimensional.

    Raises:
        TableError: missing, infinite, no numbers, or not as many rows as X.
    """
    from sklearn.utils import check_array

    _check_labels(y, rows, who)
    array = _as_array(y)
    if not 1 <= array.ndim <= 2:
        raise TableError(f"y has {array.ndim} dimensions.", "y", "Give one column, or a matrix of targets.")
    try:
        # Missing and infinite values are refused in scikit-learn's words.
        values = check_array(array, ensure_2d=False, dtype=np.float64, input_name="y")
    except ValueError as error:
        mend = "Leave out the rows without a label, and give finite numbers."
        raise TableError(str(error).splitlines()[0], "y", mend) from None
    one_dimensional = values.ndim == 1
    return (values[:, None] if one_dimensional else values), one_dimensional


def read_classes(y: Any, rows: int, who: str) -> npt.NDArray[Any]:
    """Return labels as one-dimensional array.

    Raises:
        TableError: missing, no classes, or not as many rows as X.
    """
    from sklearn.utils import column_or_1d
    from sklearn.utils.multiclass import check_classification_targets

    _check_labels(y, rows, who)
    try:
        labels = column_or_1d(_as_array(y), warn=True)
        if pd.isna(labels).any():
            where = int(pd.isna(labels).argmax())
            raise TableError(f"Input y contains NaN, first in row {where}.", "y", "Leave out the rows without a label.")
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise TableError("Input y contains infinity.", "y", "Give classes as words or whole numbers.")
        check_classification_targets(labels)
    except ValueError as error:
        if isinstance(error, TableError):
            raise
        mend = "Give one class for every row; for numbers use RMTGBRegressor."
        raise TableError(str(error).splitlines()[0], "y", mend) from None
    return np.asarray(labels)


def _as_array(y: Any) -> npt.NDArray[Any]:
    return np.asarray(y.to_pandas() if hasattr(y, "to_pandas") else y)


def _check_labels(y: Any, rows: int, who: str) -> None:
    if y is None:
        raise TableError(f"{who} requires y to be passed, but the target y is None.", "y", "Give the targets.")
    given = len(y) if hasattr(y, "__len__") else len(np.atleast_1d(np.asarray(y)))
    if given != rows:
        raise TableError(
            f"Found input variables with inconsistent numbers of samples: {rows} rows of X and {given} of y.",
            "y",
            "Give one label for every row of X.",
        )


def read_row_weights(sample_weight: Any, rows: int) -> Floats:
    """Return a weight for every row, 1 without.

    Raises:
        TableError: see ``read_weights``; or one for every row and target.
    """
    weights = read_weights(sample_weight, rows, 1)
    if weights is None:
        return np.ones(rows)
    if np.asarray(sample_weight).ndim > 1:
        raise TableError("Sample weights must be 1D.", "sample_weight", "Give one weight for every row.")
    return np.ascontiguousarray(weights[:, 0])


def read_theta0(theta0: Any, tasks: Sequence[Level]) -> Floats:
    """Return theta before block 2, (T,), from a sequence in the order of the sorted tasks or a mapping by task.

    Raises:
        TableError: a task is missing or unknown, or a value is not finite.
    """
    if isinstance(theta0, pd.Series):
        theta0 = theta0.to_dict()
    if isinstance(theta0, Mapping):
        missing = [task for task in tasks if task not in theta0]
        if missing or len(theta0) != len(tasks):
            what = f"it lacks {missing[0]!r}" if missing else "it names tasks that are not in the table"
            raise TableError(
                f"theta0 has {len(theta0)} tasks, the table {len(tasks)}; {what}.", "theta0", "Give one for each."
            )
        theta0 = [theta0[task] for task in tasks]
    theta = np.asarray(theta0, dtype=np.float64)
    if theta.shape != (len(tasks),) or not np.isfinite(theta).all():
        raise TableError(
            f"theta0 of shape {theta.shape} does not give {len(tasks)} tasks a finite number each.",
            "theta0",
            "Give one number for each task, in the order of the sorted tasks, or a mapping.",
        )
    return theta


def _whole(least: int, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= int(value) <= most
    )


def _number(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and holds(float(value))
    )


def _word(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _three(value: Any) -> bool:
    given = isinstance(value, (tuple, list)) and len(value) == 3 and all(_whole(0)(one) for one in value)
    return given and any(value)


_POSITIVE = (_number(lambda rate: rate > 0), "a number above 0")
_FROM_0 = (_number(lambda number: number >= 0), "a number of 0 or more")
_TRUTH = (lambda value: isinstance(value, (bool, np.bool_)), "True or False")

SETTINGS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "n_estimators": (_three, "three whole numbers (n1, n2, n3) of 0 or more, not all 0"),
    "learning_rate": _POSITIVE,
    "max_depth": (_whole(1), "a whole number above 0"),
    "engine": (_word("hist", "exact"), '"hist" or "exact"'),
    "min_samples_leaf": (_whole(1), "a whole number above 0"),
    "l2": _FROM_0,
    "max_bins": (_whole(2, MOST_BINS), f"a whole number from 2 to {MOST_BINS}"),
    "n_init": (_whole(1), "a whole number above 0"),
    "theta_learning_rate": (lambda value: value is None or _FROM_0[0](value), "None or a number of 0 or more"),
    "theta_reduction": (_word("sum", "mean"), '"sum" or "mean"'),
    "theta_standardize": _TRUTH,
    "theta_l2": _FROM_0,
    "theta_clip": (lambda value: value is None or _POSITIVE[0](value), "None or a number above 0"),
    "early_stopping": _TRUTH,
    "validation_fraction": (_number(lambda share: 0 < share < 1), "between 0 and 1"),
    "n_iter_no_change": (_whole(1), "a whole number above 0"),
    "tol": _FROM_0,
    "unseen_task": (_word("error", "shared"), '"error" or "shared"'),
}
"""What every setting has to be, and how that is said."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a setting out of range.

    Raises:
        TableError: names the setting, its value and what is allowed.
    """
    for name, (holds, told) in SETTINGS.items():
        if name in settings and not holds(settings[name]):
            raise TableError(f"{name} is {settings[name]!r}.", name, f"It is {told}.")
