"""What a merge may be told: every method's parameters with defaults and ranges, and their value at one tensor.

Needs neither torch nor numpy. A value is found from the nearest outwards: the model's own, the slice's, the merge's,
the method's default.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf, isfinite
from typing import Any

from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.models.architecture import TensorPlace
from multitune.weights.config import MergeConfig, Value
from multitune.weights.learned.step_config import LEARNED_METHODS

logger = logging.getLogger("multitune.weights")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        default: where nothing is said; None: must be said.
        low: smallest value.
        high: largest value.
        told: what it does, one line.
        each: whether every model may have its own; else it is one for the merge.
        words: the words that it may be, for a choice.
        mergekit: the default under ``compat: mergekit``, where that differs.
        whole: whether only whole numbers mean something.
    """

    default: float | str | None
    low: float
    high: float
    told: str
    each: bool = False
    words: tuple[str, ...] = ()
    mergekit: float | str | None = None
    whole: bool = False


WEIGHT = Parameter(1.0, -inf, inf, "factor of the model", each=True)
LAMBDA = Parameter(1.0, -inf, inf, "factor of the merged task vector")
ALPHA = Parameter(0.3, -inf, inf, "factor of the sum (the paper's alpha)", mergekit=1.0)
DENSITY = Parameter(0.2, 0.0, 1.0, "fraction that is kept, of the largest magnitudes", each=True, mergekit=1.0)
CHANCE = Parameter(1.0, 0.0, 1.0, "fraction that is kept, at random", each=True)
EPSILON = Parameter(0.15, 0.0, 0.5, "half the width of the keep probabilities by rank", each=True)
NORMALIZED = Parameter(1.0, 0.0, 1.0, "1: divide by the sum of the weights", whole=True)
NOT_NORMALIZED = Parameter(0.0, 0.0, 1.0, "1: divide by the sum of the weights", whole=True)
RESCALED = Parameter(1.0, 0.0, 1.0, "1: scale what is kept, so that its expected sum stays", whole=True)
NOT_RESCALED = Parameter(0.0, 0.0, 1.0, "1: scale what is kept, so that the sum of magnitudes stays", whole=True)
KEEP = Parameter(0.15, 0.0, 1.0, "fraction that is kept, of all", each=True, mergekit=1.0)
DROP_TOP = Parameter(0.006, 0.0, 1.0, "fraction of the largest magnitudes that is dropped", each=True, mergekit=0.01)
REMOVE_FIRST = Parameter(
    1.0, 0.0, 1.0, "1: drop the top, then keep of the rest; 0: keep the top, drop of the kept", whole=True
)
WITHIN = "within what magnitudes are ranked: one tensor, one row, all tensors"
BAND = Parameter("layer", 0, 0, WITHIN, words=("layer", "row", "global"))
TRIM = Parameter("global", 0, 0, WITHIN, words=("layer", "global"), mergekit="layer")
AGGREGATE = Parameter("mean", 0, 0, "how values of the elected sign are joined", words=("mean", "sum", "max"))

DARE = {"weight": WEIGHT, "density": CHANCE, "lambda": LAMBDA, "rescale": RESCALED}
DELLA = DARE | {"epsilon": EPSILON}
BREADCRUMBS = {
    "weight": WEIGHT,
    "keep": KEEP,
    "drop_top": DROP_TOP,
    "lambda": ALPHA,
    "granularity": BAND,
    "remove_first": REMOVE_FIRST,
    "normalize": NOT_NORMALIZED,
    "rescale": NOT_RESCALED,
}

METHOD_PARAMETERS: dict[str, dict[str, Parameter]] = {
    "linear": {"weight": WEIGHT, "normalize": NORMALIZED},
    "slerp": {"t": Parameter(0.5, 0.0, 1.0, "way from the first model to the second")},
    "multislerp": {"weight": WEIGHT, "normalize": NORMALIZED},
    "task_arithmetic": {"weight": WEIGHT, "lambda": LAMBDA, "normalize": NOT_NORMALIZED},
    "ties": {
        "weight": WEIGHT,
        "density": DENSITY,
        "lambda": LAMBDA,
        "granularity": TRIM,
        "aggregate": AGGREGATE,
        "normalize": NORMALIZED,
        "rescale": NOT_RESCALED,
    },
    "dare_linear": DARE | {"normalize": NOT_NORMALIZED},
    "dare_ties": DARE | {"normalize": NOT_NORMALIZED},
    "della": DELLA | {"normalize": NORMALIZED},
    "della_linear": DELLA | {"normalize": NOT_NORMALIZED},
    "breadcrumbs": BREADCRUMBS,
    "breadcrumbs_ties": BREADCRUMBS,
    "model_stock": {},
    "sce": {"select_topk": Parameter(1.0, 0.0, 1.0, "fraction of the entries that vary most between the models")},
    "consensus": {
        "threshold": Parameter(0.4, 0.0, inf, "lambda_t of the model's TALL mask (the authors: 0.2 to 0.6)", each=True),
        "agreement": Parameter(2.0, 0.0, inf, "how many models' masks must hold an entry", whole=True),
        "weight": WEIGHT,
        "lambda": LAMBDA,
    },
    "tall_mask": {
        "task": Parameter(0.0, 0.0, inf, "whose mask is applied, counted from 0", whole=True),
        "threshold": Parameter(0.4, 0.0, inf, "lambda_t of that mask (the authors: 0.2 to 0.6)"),
        "weight": WEIGHT,
        "lambda": LAMBDA,
    },
    "half_reset": {
        "fraction": Parameter(0.5, 0.0, 1.0, "share of the blocks that stays tuned"),
        "round": Parameter(1.0, 1.0, inf, "draws another half", whole=True),
        "granularity": Parameter("category", 0, 0, "what is halved", words=("category", "layer", "model")),
        "balance": Parameter("count", 0, 0, "what the share counts", words=("count", "params")),
    },
    "passthrough": {"scale": Parameter(1.0, -inf, inf, "factor of the tensor", each=True)},
}

WITHOUT_BASE = frozenset({"linear", "slerp", "multislerp", "passthrough"})
"""Methods on weights; all others work on task vectors and need a base."""

CHOOSES = frozenset({"half_reset"})
"""Methods that take each tensor from the base or from the one model as it is."""

BASE_IF_GIVEN = frozenset({"multislerp"})
"""Methods on weights that work on task vectors where a base is given."""

MODELS: dict[str, tuple[int, float]] = {
    "slerp": (2, 2),
    "passthrough": (1, 1),
    "half_reset": (1, 1),
    "multislerp": (2, inf),
    "model_stock": (2, inf),
    "sce": (2, inf),
}
"""Fewest and most models of a method; any number from 1 on where nothing is said."""


def check(config: MergeConfig) -> None:
    """Refuse a merge that cannot be meant, before any file is opened.

    Raises:
        MultituneError: unknown method or parameter (with the nearest name), a value out of its range or of the wrong
            kind, no base where one is needed, too few or too many models, a model given twice, a base among the
            models; all mistakes at once.
    """
    if config.method in LEARNED_METHODS:
        raise MultituneError(
            f"The method '{config.method}' looks at rows, and a merge of files has none.",
            f"method: {config.method}",
            "Give it in a merge step of a recipe whose tasks have validation rows.",
        )
    if config.method not in METHOD_PARAMETERS:
        raise MultituneError(
            f"The merging method '{config.method}' does not exist."
            f"{nearest(config.method, (*METHOD_PARAMETERS, *LEARNED_METHODS))}",
            f"method: {config.method}",
            f"Choose one of: {', '.join(METHOD_PARAMETERS)}; in a recipe also {', '.join(LEARNED_METHODS)}.",
        )
    errors = [*_about_models(config), *_about_parameters(config)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise MultituneErrors(errors)


def _about_models(config: MergeConfig) -> Iterable[MultituneError]:
    method = config.method
    if bool(config.models) == bool(config.slices):
        yield MultituneError(
            "A merge needs either models or slices, and this one has " + ("both." if config.models else "neither."),
            f"method: {method}",
            "List the models to merge, or the slices to stack.",
        )
        return
    if method in CHOOSES and config.slices:
        yield MultituneError(
            f"The method '{method}' draws over a whole model, and slices are parts.",
            "slices",
            "Reset the model first, and stack layers of the result.",
        )
    if method not in WITHOUT_BASE and config.base is None:
        yield MultituneError(
            f"The method '{method}' works on task vectors and needs the base model.",
            "base",
            "Give the folder of the model that all were tuned from as base.",
        )
    if config.lines is not None and config.base is None:
        yield MultituneError(
            "LiNeS scales task vectors and needs the base model.", "lines", "Give the base, or leave lines out."
        )
    groups = [[each.model for each in config.models]] if config.models else []
    groups += [[f"{each.model} {list(each.layers)}" for each in part.sources] for part in config.slices]
    fewest, most = MODELS.get(method, (1, inf))
    for number, names in enumerate(groups):
        where = "models" if config.models else f"slices[{number}].sources"
        if not fewest <= len(names) <= most:
            told = f"{fewest:g}" if fewest == most else f"at least {fewest:g}"
            yield MultituneError(
                f"The method '{method}' merges {told} model(s), and {len(names)} are given.", where, "Mend the list."
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield MultituneError(
                f"The model '{twice[0]}' is given twice.", where, "Give it once, with a larger weight if that is meant."
            )
        if config.base is not None and config.base in names and method not in WITHOUT_BASE:
            yield MultituneError(
                f"The base '{config.base}' is among the models; its task vector is zero.",
                where,
                "Leave it out of the models.",
            )


def _about_parameters(config: MergeConfig) -> Iterable[MultituneError]:
    known = METHOD_PARAMETERS[config.method]
    for where, parameters, of_one_model in _all_parameters(config):
        for name, value in parameters.items():
            if name not in known:
                yield MultituneError(
                    f"The method '{config.method}' has no parameter '{name}'.{nearest(name, known)}",
                    f"{where}.{name}",
                    f"Its parameters: {', '.join(known) or 'none'}.",
                )
                continue
            if of_one_model and not known[name].each:
                yield MultituneError(
                    f"The parameter '{name}' is one for the whole merge, not one per model.",
                    f"{where}.{name}",
                    "Give it under the merge's own parameters.",
                )
            yield from _about_value(known[name], value, f"{where}.{name}")
    yield from _about_counts(config)
    if {"keep", "drop_top"} <= known.keys():
        yield from _about_bands(config)
    if config.lines is not None and config.lines.alpha != "norm" and not isfinite(config.lines.alpha):
        yield MultituneError("LiNeS' alpha is not a finite number.", "lines.alpha", "Give a number, or 'norm'.")


def _all_parameters(config: MergeConfig) -> Iterable[tuple[str, Mapping[str, Value], bool]]:
    yield "parameters", config.parameters, False
    for number, model in enumerate(config.models):
        yield f"models[{number}].parameters", model.parameters, True
    for number, each in enumerate(config.slices):
        yield f"slices[{number}].parameters", each.parameters, False
        for place, source in enumerate(each.sources):
            yield f"slices[{number}].sources[{place}].parameters", source.parameters, True


def _values(value: Value) -> list[float | str]:
    """Return all numbers or words in a value, whatever its form."""
    if isinstance(value, dict):
        return [each for inner in value.values() for each in _values(inner)]
    return list(value) if isinstance(value, tuple) else [value]


def _about_value(parameter: Parameter, value: Value, where: str) -> Iterable[MultituneError]:
    if parameter.words:
        if value not in parameter.words:
            close = nearest(value, parameter.words) if isinstance(value, str) else ""
            yield MultituneError(
                f"The value {value!r} is none of the choices.{close}", where, f"Choose {', '.join(parameter.words)}."
            )
        return
    for each in _values(value):
        if isinstance(each, str):
            yield MultituneError(f"The value '{each}' is not a number.", where, f"It is the {parameter.told}.")
        elif not (isfinite(each) and parameter.low <= each <= parameter.high):
            yield MultituneError(
                f"The value {each:g} is outside of {parameter.low:g} to {parameter.high:g}.",
                where,
                f"It is the {parameter.told}.",
            )
        elif parameter.whole and each != int(each):
            yield MultituneError(f"The value {each:g} is no whole number.", where, f"It is: {parameter.told}.")


def _about_counts(config: MergeConfig) -> Iterable[MultituneError]:
    """A task, or a number of agreeing models, beyond the models that are merged."""
    for name, most in (("task", len(config.models) - 1), ("agreement", len(config.models))):
        value = config.parameters.get(name)
        if name in METHOD_PARAMETERS[config.method] and isinstance(value, int | float) and value > most >= 0:
            yield MultituneError(
                f"The value {value:g} is beyond the {len(config.models)} models that are merged.",
                f"parameters.{name}",
                f"Give {most} at most.",
            )


def refuse_unmatched(config: MergeConfig, tensors: Sequence[str]) -> None:
    """Refuse a rule by name that no tensor has: the value would silently be another one.

    mergekit takes no notice of such a rule; of its files it is told in the log.

    Raises:
        MultituneError: with the rule.
    """
    for where, parameters, _ in _all_parameters(config):
        for name, value in parameters.items():
            rules = [rule for rule in value if rule != "default"] if isinstance(value, dict) else []
            for rule in rules:
                if any(fnmatchcase(tensor, rule) for tensor in tensors):
                    continue
                if config.compat == "mergekit":
                    logger.warning("%s.%s: no tensor is called %r", where, name, rule)
                    continue
                raise MultituneError(
                    f"No tensor is called '{rule}'.",
                    f"{where}.{name}",
                    f"Correct the rule; the tensors are called {tensors[0]}, {tensors[-1]} and so on.",
                )


def _about_bands(config: MergeConfig) -> Iterable[MultituneError]:
    """keep + drop_top > 1 cannot be had: the largest of each, as far as ranges can tell without tensors."""
    known = METHOD_PARAMETERS[config.method]
    for where, own, _ in _all_parameters(config):
        if not {"keep", "drop_top"} & own.keys():
            continue
        found: dict[str, float] = {}
        for name in ("keep", "drop_top"):
            value = own.get(name, config.parameters.get(name, default_of(known[name], config.compat)))
            numbers = [each for each in _values(value) if not isinstance(each, str)]
            found[name] = min(numbers, default=0.0)
        if found["keep"] + found["drop_top"] > 1.0 + 1e-12 and config.compat == "authors":
            yield _too_much(found["keep"], found["drop_top"], where)


def _too_much(keep: float, drop_top: float, where: str) -> MultituneError:
    return MultituneError(
        f"keep {keep:g} and drop_top {drop_top:g} are more than all entries together.",
        where,
        "Both are fractions of all entries: what is dropped at the bottom is 1 - keep - drop_top.",
    )


def default_of(parameter: Parameter, compat: str) -> Any:
    """Return the default under a compatibility mode."""
    return parameter.mergekit if compat == "mergekit" and parameter.mergekit is not None else parameter.default


def resolve(value: Value, place: TensorPlace, layers: int, *, compat: str = "authors") -> Any:
    """Return a parameter's value at one tensor, or None where only names are given and none matches.

    Args:
        value: a number or word; a schedule over depth; either by name pattern.
        place: where the tensor stands.
        layers: how many layers its stack has.
        compat: tensors outside the layers take a schedule's first value, and behind the last layer (final norm, head)
            its last; under ``mergekit`` they all take the first.
    """
    if isinstance(value, dict):
        for pattern, inner in value.items():
            if pattern != "default" and fnmatchcase(place.name, pattern):
                return resolve(inner, place, layers, compat=compat)
        return resolve(value["default"], place, layers, compat=compat) if "default" in value else None
    if not isinstance(value, tuple):
        return value
    return _scheduled(value, _depth(place, layers, compat))


def _depth(place: TensorPlace, layers: int, compat: str) -> float:
    if place.layer is None:
        return float(place.category in ("norm", "head") and compat != "mergekit")
    return place.layer / (layers - 1) if layers > 1 else float(compat != "mergekit")


def _scheduled(points: tuple[float, ...], depth: float) -> float:
    """Interpolate linearly between points that are spread evenly over depths 0 to 1."""
    position = depth * (len(points) - 1)
    first = min(int(position), max(len(points) - 2, 0))
    rest = position - first
    return points[first] if rest == 0 else points[first] * (1 - rest) + points[first + 1] * rest


def resolved(
    method: str,
    own: Iterable[Mapping[str, Value]],
    outer: Iterable[Mapping[str, Value]],
    place: TensorPlace,
    compat: str,
) -> dict[str, Any]:
    """Return all parameters of a method at one tensor: a list over models where each may have its own, else one value.

    Args:
        method: name.
        own: each model's parameters.
        outer: parameters of the slice and of the merge, the nearest first.
        place: where the tensor stands.
        compat: as in ``MergeConfig``.

    Raises:
        MultituneError: at this tensor keep + drop_top is more than 1, or density +- epsilon is no probability.
    """
    outer = list(outer)

    def value_of(name: str, parameter: Parameter, levels: Iterable[Mapping[str, Value]]) -> Any:
        for level in levels:
            if name in level:
                found = resolve(level[name], place, place.layers, compat=compat)
                if found is not None:
                    return found
        return default_of(parameter, compat)

    parameters: dict[str, Any] = {}
    own = list(own)
    for name, parameter in METHOD_PARAMETERS[method].items():
        if parameter.each:
            parameters[name] = [value_of(name, parameter, [model, *outer]) for model in own]
        else:
            parameters[name] = value_of(name, parameter, outer)
    for keep, drop_top in zip(parameters.get("keep", ()), parameters.get("drop_top", ()), strict=False):
        if keep + drop_top > 1.0 + 1e-12 and compat == "authors":
            raise _too_much(keep, drop_top, place.name)
    for density, epsilon in zip(parameters.get("density", ()), parameters.get("epsilon", ()), strict=False):
        if 0 < density < 1 and not epsilon < density <= 1 - epsilon:
            raise MultituneError(
                f"density {density:g} and epsilon {epsilon:g} give probabilities outside of 0 to 1.",
                place.name,
                "DELLA keeps entries with probabilities from density - epsilon to density + epsilon.",
            )
    return parameters
