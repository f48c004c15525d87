"""What users give beside the features, checked: targets, weights, settings, and the rows that are kept aside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from multitune.errors import nearest
from multitune.tabular.multitab_columns import TableError, as_frame, is_numeric


def read_targets(y: Any, rows: int, who: str) -> tuple[pd.DataFrame, bool]:
    """Return the targets as a data frame of one column each, and whether y was one-dimensional.

    Raises:
        TableError: no y, not as many rows as X, no column, or a name stands twice.
    """
    if y is None:
        raise TableError(f"{who} requires y to be passed, but the target y is None.", "y", "Give the targets.")
    if isinstance(y, Mapping):
        y = pd.DataFrame({name: pd.Series(column) for name, column in y.items()})
    if hasattr(y, "to_pandas"):
        y = y.to_pandas()
    frame, one_dimensional = as_frame(y), isinstance(y, pd.Series)
    if frame is not None and one_dimensional and y.name is None:
        frame.columns = ["target"]
    if frame is None:
        array = y if isinstance(y, list) else np.asarray(y)
        one_dimensional = np.ndim(np.asarray(array, dtype=object)) == 1
        frame = pd.DataFrame(array).infer_objects()
        frame.columns = ["target"] if one_dimensional else unnamed_targets(frame.shape[1])
    if len(frame) != rows:
        raise TableError(
            f"Found input variables with inconsistent numbers of samples: {rows} rows of X and {len(frame)} of y.",
            "y",
            "Give one row of targets for every row of features.",
        )
    if frame.shape[1] == 0 or frame.columns.duplicated().any():
        what = (
            f"Target '{frame.columns[frame.columns.duplicated()][0]}' stands twice" if frame.shape[1] else "No target"
        )
        raise TableError(f"{what}.", "y", "Give at least one target, each under a name of its own.")
    if any(pd.api.types.is_complex_dtype(dtype) for dtype in frame.dtypes):
        raise TableError("Complex data not supported.", "y", "Give real numbers or classes.")
    return frame, one_dimensional


def unnamed_targets(count: int) -> list[str]:
    """Return the names that targets of a matrix are given."""
    return [f"target_{place}" for place in range(count)]


def read_weights(sample_weight: Any, rows: int, targets: int) -> npt.NDArray[np.float64] | None:
    """Return a weight for every row and target, None where all are 1.

    Raises:
        TableError: of another shape, negative, not finite, or all 0.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(rows, float(weights))
    if weights.shape not in ((rows,), (rows, targets)):
        raise TableError(
            f"Sample weights of shape {weights.shape} do not fit {rows} rows of {targets} targets.",
            "sample_weight",
            "Sample weights must be 1D, one for every row, or 2D, one for every row and target.",
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        bad = weights[~np.isfinite(weights) | (weights < 0)][0]
        raise TableError(f"A weight is {bad:g}.", "sample_weight", "Weights are finite and not negative.")
    if not weights.any():
        raise TableError(
            "Sample weights must contain at least one non-zero number.", "sample_weight", "Give a row some weight."
        )
    return weights if weights.ndim == 2 else np.repeat(weights[:, None], targets, axis=1)


def categorical_places(frame: pd.DataFrame, asked: Any) -> set[int]:
    """Return which columns are categorical.

    Args:
        asked: "auto" for those that hold no numbers, or the names or places of the categorical columns, to which those
            that hold no numbers are added.

    Raises:
        TableError: a name or place that is not there.
    """
    found = {place for place in range(frame.shape[1]) if not is_numeric(frame.iloc[:, place])}
    if isinstance(asked, str) and asked == "auto":
        return found
    names = list(frame.columns)
    for one in np.atleast_1d(np.asarray(asked, dtype=object)):
        if isinstance(one, str) and one in names:
            found.add(names.index(one))
        elif isinstance(one, (int, np.integer)) and 0 <= one < len(names):
            found.add(int(one))
        else:
            raise TableError(
                f"There is no column {one!r}.{nearest(str(one), map(str, names))}",
                "categorical_features",
                'Give names or places of columns, or "auto".',
            )
    return found


def validation_rows(label_nK: npt.NDArray[np.floating], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which rows are kept aside: a share of every combination of classes, at random within it.

    Args:
        label_nK: codes of the classification targets, nan where missing; K may be 0.
        fraction: the share, between 0 and 1.
    """
    rows = len(label_nK)
    random = np.random.default_rng(seed)
    stratum = np.unique(np.nan_to_num(label_nK, nan=-1.0), axis=0, return_inverse=True)[1].ravel()
    shuffled = random.permutation(rows)
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    marks = np.floor(np.arange(rows + 1) * fraction + random.random())
    aside = np.zeros(rows, dtype=bool)
    aside[order[np.diff(marks) > 0]] = True
    return aside


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least


def _number(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and holds(float(value))
    )


def _widths(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(_whole(1)(width) for width in value)


def _one_of(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is one or (isinstance(value, str) and value == one) for one in allowed)


SETTINGS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("epochs", "patience", "blocks", "heads", "embed_dim", "ff_dim", "experts", "layers"),
        (_whole(1), "a whole number above 0"),
    ),
    "context_rows": (_whole(2), "a whole number above 1"),
    **dict.fromkeys(("shared_experts", "private_experts"), (_whole(1), "a whole number above 0")),
    **dict.fromkeys(("ff_dropout", "att_dropout", "dropout"), (_number(lambda p: 0 <= p < 1), "from 0 to below 1")),
    "batch_size": (lambda value: value == "auto" or _whole(2)(value), '"auto" or a whole number above 1'),
    "learning_rate": (_number(lambda rate: rate > 0), "a number above 0"),
    "weight_decay": (_number(lambda decay: decay >= 0), "a number of 0 or more"),
    "validation_fraction": (_number(lambda share: 0 < share < 1), "between 0 and 1"),
    **dict.fromkeys(("tower", "hidden"), (_widths, "a tuple of widths")),
    "early_stopping": (_one_of("auto", True, False), '"auto", True or False'),
    "mask": (_one_of("none", "TxT", "FxT", "FxT_TxT"), '"none", "TxT", "FxT" or "FxT_TxT"'),
    "inter_sample": (_one_of("off", "batch"), '"off" or "batch"'),
    "initialisation": (_one_of("paper", "torch"), '"paper" or "torch"'),
    "regression_loss": (_one_of("mse", "rmse"), '"mse" or "rmse"'),
    "precision": (_one_of("fp32", "bf16"), '"fp32" or "bf16"'),
    "network": (
        _one_of("mlp", "shared_bottom", "mmoe", "ple", "stem", "ft_transformer"),
        '"mlp", "shared_bottom", "mmoe", "ple", "stem" or "ft_transformer"',
    ),
}
"""What every setting has to be, and how that is said."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a setting out of range.

    Raises:
        TableError: names the setting, its value and what is allowed.
    """
    for name, value in settings.items():
        if name in SETTINGS and not SETTINGS[name][0](value):
            raise TableError(f"{name} is {value!r}.", name, f"It is {SETTINGS[name][1]}.")
    width, heads = settings.get("embed_dim"), settings.get("heads")
    if width is not None and heads is not None and width % heads:
        raise TableError(
            f"embed_dim {width} is no multiple of the {heads} heads.", "embed_dim", "Change one of the two."
        )
