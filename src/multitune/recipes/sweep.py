"""Sweeps: axes of a recipe, and the plain recipes that their product gives."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.reading import Document
from multitune.recipes.schema import Recipe

MOST_VARIANTS = 24
"""More variants than these are only run when the user says so."""

LONGEST_NAME = 180  # of a variant's folder; file systems allow 255 bytes


@dataclass(frozen=True)
class Value:
    """One value of an axis: its name, and where the recipe says it."""

    name: str
    value: Any
    where: str


@dataclass(frozen=True)
class Axis:
    """One axis of a sweep.

    Attributes:
        name: as variants are named by it: the key's last part, or as much of its end as tells it from other axes.
        key: the dotted key of the recipe that it sets.
        values: at least one, names unique.
    """

    name: str
    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Variant:
    """One point of the product: its name, the value's name by axis, and the recipe that it stands for."""

    name: str
    values: Mapping[str, str]
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A recipe with axes.

    Attributes:
        name: of the recipe.
        axes: in the order of the recipe.
        variants: the product, the last axis running fastest.
    """

    name: str
    axes: tuple[Axis, ...]
    variants: tuple[Variant, ...]


def read_axes(document: Document) -> tuple[Axis, ...]:
    """Return the axes that a document declares under ``sweep``; () when it declares none.

    Raises:
        MultituneErrors: axes that are no lists or named values, names that stand twice, axes that overlap.
    """
    declared = document.data.get("sweep")
    if not declared:
        return ()
    if not isinstance(declared, dict):
        raise MultituneError(
            "A sweep maps keys of the recipe to their values.",
            document.where(("sweep",)),
            "Write sweep: {seed: [0, 1, 2]}.",
        )
    names = _axis_names(list(declared))
    errors: list[MultituneError] = list(_overlaps(list(declared), document))
    axes = []
    for key, values in declared.items():
        try:
            axes.append(Axis(names[key], key, _values(key, values, document)))
        except MultituneError as error:
            errors.append(error)
    if errors:
        raise MultituneErrors(errors)
    return tuple(axes)


def refuse_too_many(axes: Sequence[Axis], where: str) -> None:
    """Refuse a product of more than MOST_VARIANTS runs.

    Raises:
        MultituneError: with the count, and how it comes about.
    """
    sizes = [len(axis.values) for axis in axes]
    count = math.prod(sizes)
    if count > MOST_VARIANTS:
        how = " x ".join(f"{size} {axis.name}" for size, axis in zip(sizes, axes, strict=True))
        widest = max(axes, key=lambda axis: len(axis.values))
        raise MultituneError(
            f"The sweep expands to {count} runs ({how}); more than {MOST_VARIANTS} need your word.",
            where,
            f"Say --yes, or take values out of an axis: --set 'sweep.{widest.key}=[...]'.",
        )


def points(axes: Sequence[Axis]) -> Iterator[tuple[str, dict[str, Value]]]:
    """Yield the product's points: a name that a folder can have, and the value of every axis by its name."""
    for values in product(*(axis.values for axis in axes)):
        point = {axis.name: value for axis, value in zip(axes, values, strict=True)}
        name = ",".join(f"{axis}={value.name}" for axis, value in point.items())
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 13]}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        yield name, point


def _axis_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of the keys, in whole parts, that tell them apart."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        alone = (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))
        names[key] = next(alone, key)
    return names


def _overlaps(keys: Sequence[str], document: Document) -> Iterator[MultituneError]:
    for key in keys:
        for other in keys:
            if other.startswith(f"{key}."):
                yield MultituneError(
                    f"The axes '{key}' and '{other}' set the same place.",
                    document.where(("sweep", other)),
                    f"Let one axis set {key}, with values that hold both.",
                )


def _values(key: str, values: Any, document: Document) -> tuple[Value, ...]:
    where = document.where(("sweep", key))
    if isinstance(values, dict) and values:
        named = [(str(name), value, document.where(("sweep", key, name))) for name, value in values.items()]
    elif isinstance(values, list) and values:
        if any(isinstance(value, dict | list) for value in values):
            raise MultituneError(
                f"The values of the axis '{key}' need names.",
                where,
                "Write a mapping from names to values: {equal: {policy: equal}, ...}.",
            )
        named = [(_text(value), value, document.where(("sweep", key, i))) for i, value in enumerate(values)]
    else:
        raise MultituneError(
            f"The axis '{key}' has no values.", where, "Give it a list, or a mapping from names to values."
        )
    found: dict[str, Value] = {}
    for name, value, place in named:
        folder = re.sub(r"[^\w.+@-]+", "-", name)
        if folder in found:
            raise MultituneError(
                f"The axis '{key}' has the value '{folder}' twice.",
                place,
                "Take one out, or name both: {first: ..., second: ...}.",
            )
        found[folder] = Value(folder, value, place)
    return tuple(found.values())


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
