"""What a network remembers of the tables it was fitted on: scales and levels of features, kinds and classes of targets.

Everything here is plain data that goes to JSON and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from multitune.errors import nearest
from multitune.tabular.multitab_columns import Level, TableError, coded, is_numeric, numbers_of
from multitune.tabular.network_layers import NetworkTarget, TargetKind

KINDS: tuple[TargetKind, ...] = ("binary", "multiclass", "regression")
MOST_INFERRED_CLASSES = 20  # whole numbers with more distinct values are taken for a regression target

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureColumn:
    """A fitted feature.

    Attributes:
        name: of the column, or its place as a word.
        levels: of a category, in the order of their codes 1, 2, ...; code 0 stands for what was not there at fit. None
            for a numeric feature.
        missing_code: of a missing category: a level of its own where one was missing at fit, else 0.
        median, mean, scale: of a numeric feature; a missing number becomes the median.
    """

    name: str
    levels: tuple[Level, ...] | None = None
    missing_code: int = 0
    median: float = 0.0
    mean: float = 0.0
    scale: float = 1.0

    @property
    def codes(self) -> int:
        """How many codes the table of a category needs."""
        assert self.levels is not None
        return 1 + len(self.levels) + (self.missing_code > 0)


def fit_feature(column: pd.Series, name: str, categorical: bool) -> FeatureColumn:
    """Return what is remembered of a feature.

    Levels are sorted, so that their codes do not depend on the order of the rows.
    """
    where = f"column '{name}'"
    if categorical:
        places, levels = coded(column, where)
        ordered = tuple(sorted(levels, key=lambda level: (isinstance(level, str), level)))
        return FeatureColumn(name, ordered, len(ordered) + 1 if (places < 0).any() else 0)
    values = numbers_of(column, where)
    present = values[~np.isnan(values)]
    if not len(present):
        return FeatureColumn(name)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale, median = float(present.mean()), float(present.std()), float(np.median(present))
    if not np.isfinite([mean, scale, median]).all():
        raise TableError(
            f"Values up to {np.abs(present).max():g} have no standard deviation in double precision.",
            where,
            "Rescale the column.",
        )
    return FeatureColumn(name, None, 0, median, mean, scale if scale > 0 else 1.0)


def encode_features(
    frame: pd.DataFrame, columns: Sequence[FeatureColumn]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the numeric block (rows, N), standardised, and the block of codes (rows, C)."""
    numeric = [place for place, column in enumerate(columns) if column.levels is None]
    categorical = [place for place, column in enumerate(columns) if column.levels is not None]
    numbers = np.empty((len(frame), len(numeric)), dtype=np.float32)
    codes = np.empty((len(frame), len(categorical)), dtype=np.int32)
    for to, place in enumerate(numeric):
        fitted = columns[place]
        values = numbers_of(frame.iloc[:, place], f"column '{fitted.name}'")
        values = np.where(np.isnan(values), fitted.median, values)
        with np.errstate(over="ignore"):
            numbers[:, to] = (values - fitted.mean) / fitted.scale
        if not np.isfinite(numbers[:, to]).all():
            raise TableError(
                f"A value of {np.abs(values).max():g} is out of range for a column with deviation {fitted.scale:g}.",
                f"column '{fitted.name}'",
                "Look whether its unit has changed since fit.",
            )
    for to, place in enumerate(categorical):
        codes[:, to] = _codes(frame.iloc[:, place], columns[place])
    return numbers, codes


def _codes(column: pd.Series, fitted: FeatureColumn) -> npt.NDArray[np.int32]:
    assert fitted.levels is not None
    code_of = {level: code for code, level in enumerate(fitted.levels, start=1)}
    places, levels = coded(column, f"column '{fitted.name}'")
    code_of_place = np.array([*(code_of.get(level, 0) for level in levels), fitted.missing_code], dtype=np.int32)
    return code_of_place[places]  # a missing value has place -1, the last one


@dataclass(frozen=True)
class TargetColumn:
    """A fitted target.

    Attributes:
        name: of the column.
        kind: how it is learned.
        classes: of a classification target, sorted.
        mean, scale: of a regression target, of the present labels.
    """

    name: str
    kind: TargetKind
    classes: tuple[Level, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> NetworkTarget:
        return NetworkTarget(self.kind, len(self.classes) if self.kind == "multiclass" else 1)

    def class_array(self) -> npt.NDArray[Any]:
        """Return the classes as an array of their own type."""
        return np.array(self.classes)


def infer_kind(column: pd.Series) -> TargetKind:
    """Return what a target is taken for when nobody says.

    Words, categories and truth values, and numbers of two distinct values, are classes; so are whole numbers of at most
    20 distinct values. Any other number is a regression target.
    """
    distinct = len(coded(column, f"target '{column.name}'")[1])
    if not is_numeric(column):
        return "binary" if distinct <= 2 else "multiclass"
    present = column[~column.isna()]
    values = present.to_numpy(dtype=np.float64)
    whole = bool(np.isfinite(values).all()) and not np.any(values % 1)
    if distinct == 2:
        return "binary"
    return "multiclass" if whole and 2 < distinct <= MOST_INFERRED_CLASSES else "regression"


def fit_target(column: pd.Series, name: str, kind: TargetKind) -> TargetColumn:
    """Return what is remembered of a target.

    Raises:
        TableError: no label, one class alone, more than two classes of a binary target, infinite labels.
    """
    where = f"target '{name}'"
    if column.isna().all():
        raise TableError("No row has a label.", where, "Leave the target out, or give labels.")
    if kind == "regression":
        values = numbers_of(column, where)
        present = values[~np.isnan(values)]
        scale = float(present.std())
        return TargetColumn(name, kind, mean=float(present.mean()), scale=scale if scale > 0 else 1.0)
    if pd.api.types.is_float_dtype(column.dtype):
        numbers_of(column, where)  # refuses infinite labels
    _, levels = coded(column, where)
    classes = tuple(sorted(levels, key=lambda level: (isinstance(level, str), level)))
    if len(classes) < 2:
        raise TableError(
            f"All labels are of one class, {classes[0]!r}.",
            where,
            "Leave the target out; there is nothing to tell apart.",
        )
    if kind == "binary" and len(classes) > 2:
        raise TableError(f"A binary target has {len(classes)} classes.", where, "Call it multiclass.")
    return TargetColumn(name, "binary" if len(classes) == 2 else "multiclass", classes)


def encode_target(column: pd.Series, fitted: TargetColumn) -> Floats:
    """Return labels as the network learns them, nan where missing.

    Raises:
        TableError: a class that was not there at fit.
    """
    where = f"target '{fitted.name}'"
    if fitted.kind == "regression":
        return (numbers_of(column, where) - fitted.mean) / fitted.scale
    code_of = {label: float(code) for code, label in enumerate(fitted.classes)}
    places, levels = coded(column, where)
    new = [level for level in levels if level not in code_of]
    if new:
        raise TableError(
            f"The class {new[0]!r} was not there at fit.", where, f"Fit with rows of it; known are {fitted.classes}."
        )
    return np.array([*(code_of[level] for level in levels), np.nan])[places]


def kinds_of(
    names: Sequence[str], given: Mapping[str, str] | Sequence[str] | str | None
) -> dict[str, TargetKind | None]:
    """Return the kind that was asked for every target, None where it is to be inferred.

    Raises:
        TableError: an unknown kind, an unknown target, or not one for every target.
    """
    where = "target_types"
    if given is None:
        return dict.fromkeys(names)
    if isinstance(given, str):
        given = [given] * len(names)
    if not isinstance(given, Mapping):
        if len(given) != len(names):
            raise TableError(
                f"There are {len(given)} kinds for {len(names)} targets.", where, "Give one for each, or a mapping."
            )
        given = dict(zip(names, given, strict=True))
    for name, kind in given.items():
        if name not in names:
            raise TableError(f"There is no target '{name}'.{nearest(name, names)}", where, f"Targets: {list(names)}.")
        if kind not in KINDS:
            raise TableError(f"'{kind}' is no kind of target.{nearest(kind, KINDS)}", where, f"Kinds: {list(KINDS)}.")
    known: dict[str, Any] = {name: given.get(name) for name in names}
    return known
