"""Tables as they come - pandas, polars, Arrow, NumPy - as one kind of table, with columns found by name."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from multitune.errors import MultituneError, nearest

Level = str | int | float | bool
"""A value of a categorical column, as JSON knows it."""


class TableError(MultituneError, ValueError):
    """A table, or a setting of an estimator, that cannot be used; a ValueError, as scikit-learn's users expect."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.where, self.mend)  # crosses processes whole


class TableTypeError(MultituneError, TypeError):
    """A cell of a type that no column can hold; a TypeError, as scikit-learn's users expect."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.where, self.mend)


def read_features(X: Any) -> tuple[pd.DataFrame, list[str] | None]:
    """Return the features as a data frame, and their names where the table has any.

    Args:
        X: a pandas or polars frame, an Arrow table, or anything that NumPy takes for a matrix.

    Raises:
        TableError: sparse, complex, not two-dimensional, empty, or a name stands twice.
    """
    frame = as_frame(X)
    if frame is not None:
        names = _names(frame, "X")
        if frame.shape[0] == 0 or frame.shape[1] == 0:
            what = "sample(s)" if frame.shape[0] == 0 else "feature(s)"
            raise TableError(
                f"Found array with 0 {what} (shape={frame.shape}) while a minimum of 1 is required.",
                "X",
                "Give at least one row and one column.",
            )
        return frame, names
    return pd.DataFrame(_matrix(X), copy=False), None  # nobody writes to it


def as_frame(table: Any) -> pd.DataFrame | None:
    """Return a pandas, polars or Arrow table as a pandas frame, None for anything else."""
    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, pd.Series):
        return table.to_frame()
    if hasattr(table, "to_pandas"):
        converted = table.to_pandas()
        return converted.to_frame() if isinstance(converted, pd.Series) else converted
    return None


def _matrix(X: Any) -> npt.NDArray[Any]:
    from sklearn.utils import check_array

    if hasattr(X, "toarray"):  # scikit-learn's own words for sparse input
        check_array(X, accept_sparse=False)
    matrix: npt.NDArray[Any] = check_array(X, dtype=None, ensure_all_finite=False)
    return matrix


def _names(frame: pd.DataFrame, where: str) -> list[str] | None:
    strings = [isinstance(name, str) for name in frame.columns]
    if not any(strings):
        return None
    if not all(strings):
        raise TableTypeError(
            f"Column names are of several types: {sorted({type(name).__name__ for name in frame.columns})}.",
            where,
            "Feature names are only supported if all input features have string names; rename the columns.",
        )
    twice = frame.columns[frame.columns.duplicated()].unique()
    if len(twice):
        raise TableError(
            f"Column '{twice[0]}' stands {int((frame.columns == twice[0]).sum())} times in the table.",
            where,
            "Give every column a name of its own.",
        )
    return list(frame.columns)


def aligned(frame: pd.DataFrame, names: list[str] | None, fitted: list[str] | None, count: int, who: str) -> Any:
    """Return the columns in the order of fitting, found by name where both sides have names.

    Columns that were not there at fit are left out with a warning. Where only one side has names, columns count by
    their place, with the warning that scikit-learn gives.

    Raises:
        TableError: a column is missing, or there are more or fewer than at fit.
    """
    if names is not None and fitted is not None:
        missing = [name for name in fitted if name not in frame.columns]
        if missing:
            raise TableError(
                f"The columns {', '.join(missing)} were there at fit and are not now.{nearest(missing[0], names)}",
                "X",
                "Give every column that the model was fitted with; their order does not matter.",
            )
        extra = [name for name in names if name not in fitted]
        if extra:
            warnings.warn(f"Columns that were not there at fit are not used: {', '.join(extra)}.", stacklevel=4)
        return frame[fitted]
    if names is not None or fitted is not None:
        a, b = ("does not have valid", "was") if names is None else ("has", "was not")
        warnings.warn(
            f"X {a} feature names, but {who} {b} fitted with feature names; columns count by their place.",
            UserWarning,
            stacklevel=4,
        )
    if frame.shape[1] != count:
        raise TableError(
            f"X has {frame.shape[1]} features, but {who} is expecting {count} features as input",
            "X",
            "Give the columns that the model was fitted with.",
        )
    return frame


def is_numeric(column: pd.Series) -> bool:
    """Whether a column holds numbers by its type, or is of no type and holds nothing but numbers."""
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(column.dtype):
        return False
    if pd.api.types.is_numeric_dtype(column.dtype):
        return True
    if column.dtype == object:
        present = column[~column.isna()]
        return all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in present)
    return False


def numbers_of(column: pd.Series, where: str) -> npt.NDArray[np.float64]:
    """Return a column as float64, nan where a value is missing.

    Raises:
        TableError: complex, infinite, or a value that is no number.
    """
    if pd.api.types.is_complex_dtype(column.dtype):
        raise TableError("Complex data not supported.", where, "Give real numbers.")
    try:
        values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise TableError(
            f"{_first_word(column)} is no number, and the column was one at fit.",
            where,
            "Give numbers, or name the column in `categorical_features` when fitting.",
        ) from None
    infinite = np.isinf(values)
    if infinite.any():
        raise _infinite(int(infinite.argmax()), where)
    return values


def _infinite(row: int, where: str) -> TableError:
    return TableError(
        f"Input contains infinity, first in row {row}.", where, "Replace infinite values, or leave them missing (NaN)."
    )


def _first_word(column: pd.Series) -> str:
    numbers = pd.to_numeric(column, errors="coerce")
    words = column[numbers.isna() & ~column.isna()]
    return repr(words.iloc[0]) if len(words) else "A value"


def coded(column: pd.Series, where: str) -> tuple[npt.NDArray[np.intp], list[Level]]:
    """Return a column as places in a list of its distinct values, -1 where missing, and that list.

    Raises:
        TableTypeError: a value is neither a word nor a number.
        TableError: a value is infinite.
    """
    try:
        places, distinct = pd.factorize(column)
    except TypeError:  # unhashable
        kinds = sorted({type(value).__name__ for value in column if not isinstance(value, (str, int, float))})
        raise _no_level(f"A value of type {kinds[0]}", where) from None
    levels = [value.item() if isinstance(value, np.generic) else value for value in distinct]
    for number, level in enumerate(levels):
        if not isinstance(level, (str, int, float, bool)):
            raise _no_level(repr(level), where)
        if isinstance(level, float) and math.isinf(level):
            raise _infinite(int((places == number).argmax()), where)
    return places, levels


def _no_level(what: str, where: str) -> TableTypeError:
    return TableTypeError(
        f"{what} cannot be a category: the argument must be a string or a number.",
        where,
        "Turn dates, lists and mappings into words or numbers first.",
    )
