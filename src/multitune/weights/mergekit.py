"""Reads the YAML of mergekit: the same merge, as a ``MergeConfig`` with ``compat: mergekit``. Needs no torch.

What that format means, as its 0.1.5 does it: of several values of one parameter that of the source holds, then the
slice's, the module's, the whole merge's; a list is interpolated over the layers; filters match by substring, and the
first that does decides. Tensors outside the layers (embeddings, final norm, head) take the FIRST value of a list.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.weights.config import MergeConfig, MergedModel, Schedule, Slice, SliceSource, Value
from multitune.weights.parameters import BASE_IF_GIVEN, METHOD_PARAMETERS, WITHOUT_BASE

logger = logging.getLogger("multitune.weights")

Told = Mapping[str, Any]

DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"} | {
    "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"
}  # fmt: skip

TOP = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "parameters",
)

NAMES: dict[str, dict[str, str]] = {
    "breadcrumbs": {"density": "keep", "gamma": "drop_top"},
    "breadcrumbs_ties": {"density": "keep", "gamma": "drop_top"},
    "multislerp": {"normalize_weights": "normalize"},
}
"""Parameters that are called otherwise here."""

WITHOUT_EFFECT = {"int8_mask", "eps"}
"""Parameters of how mergekit computes (the type of masks, a guard against division by zero), not of what."""

FALSE_ALONE = {"filter_wise", "nuslerp_flatten", "nuslerp_row_wise"}
"""Variants that are not offered: only their being off."""

COMMON = frozenset({"weight", "density", "gamma", "lambda", "epsilon", "normalize", "rescale", "t", "scale"})
"""Parameters that mergekit lets stand where a method does not read them; they are left out, with a warning."""


def is_mergekit(data: Told) -> bool:
    """Tell whether a YAML mapping is mergekit's and not ours."""
    return "merge_method" in data


def read_mergekit(data: Told, where: str) -> MergeConfig:
    """Return the merge that a mergekit file describes.

    Args:
        data: the file's mapping.
        where: the file, for errors.

    Raises:
        MultituneErrors: unknown keys (with the nearest name), methods and variants that are not offered, values of no
            known form; all at once.
    """
    errors = [*_unknown(data, TOP, where)]
    method = str(data.get("merge_method"))
    if method not in METHOD_PARAMETERS:
        errors.append(
            MultituneError(
                f"The merging method '{method}' is not offered here.{nearest(method, METHOD_PARAMETERS)}",
                f"{where}, merge_method",
                f"Use one of: {', '.join(METHOD_PARAMETERS)}.",
            )
        )
    if errors:
        raise MultituneErrors(errors)
    try:
        body = _body(data, where)
        base = _model(data["base_model"], f"{where}, base_model") if data.get("base_model") else None
        config = MergeConfig(
            method=method,
            base=None if method in WITHOUT_BASE - BASE_IF_GIVEN else base,
            models=tuple(_models(body["models"], method, base, where)) if body.get("models") else (),
            slices=tuple(_slices(body["slices"], method, base, where)) if body.get("slices") else (),
            parameters=_joined(method, data, body, where),
            dtype=_dtype(data, where),
            vocabulary=_vocabulary(data, base, where),
            chat_template=_chat_template(data, where),
            compat="mergekit",
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"the key {error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise MultituneError(f"The file is no merge: {told}.", where, "Compare it with mergekit's format.") from None
    _warn_of_lists(config)
    return config


def _body(data: Told, where: str) -> Told:
    """Return what holds models or slices: the file, or its only module."""
    given = [key for key in ("models", "slices", "modules") if data.get(key)]
    if len(given) != 1:
        raise MultituneError(
            f"A merge has exactly one of models, slices and modules, and this one has {', '.join(given) or 'none'}.",
            where,
            "Keep one of them.",
        )
    if given != ["modules"]:
        return data
    if len(data["modules"]) != 1:
        raise MultituneError(
            f"The merge has {len(data['modules'])} modules, and models of several towers are merged as one here.",
            f"{where}, modules",
            "Write models in place of modules.",
        )
    name, body = next(iter(data["modules"].items()))
    if errors := [*_unknown(body, ("models", "slices", "parameters"), f"{where}, modules.{name}")]:
        raise MultituneErrors(errors)
    return dict(body)


def _joined(method: str, data: Told, body: Told, where: str) -> dict[str, Value]:
    """Return the parameters of the merge under those of its module, which go first."""
    outer = _parameters(method, data.get("parameters"), f"{where}, parameters")
    if body is data:
        return outer
    inner = _parameters(method, body.get("parameters"), f"{where}, modules.parameters")
    return {**outer, **{name: _over(value, outer.get(name)) for name, value in inner.items()}}


def _over(inner: Value, outer: Value | None) -> Value:
    """Return rules that fall back to an outer value where they match nothing."""
    if not isinstance(inner, dict) or "default" in inner or outer is None or isinstance(outer, str):
        return inner
    return {**inner, **(outer if isinstance(outer, dict) else {"default": outer})}


def _models(told: Any, method: str, base: str | None, where: str) -> Iterator[MergedModel]:
    found = []
    for number, each in enumerate(told):
        place = f"{where}, models[{number}]"
        if errors := [*_unknown(each, ("model", "parameters"), place)]:
            raise MultituneErrors(errors)
        name = _model(each["model"], place, base)
        found.append(MergedModel(model=name, parameters=_parameters(method, each.get("parameters"), place, one=True)))
    yield from _in_order(found, method, base, where)


def _slices(told: Any, method: str, base: str | None, where: str) -> Iterator[Slice]:
    for number, part in enumerate(told):
        place = f"{where}, slices[{number}]"
        if errors := [*_unknown(part, ("sources", "base_model", "residual_weight", "parameters"), place)]:
            raise MultituneErrors(errors)
        own = _model(part["base_model"], place) if part.get("base_model") else base
        if part.get("residual_weight") is not None or (own != base and method not in WITHOUT_BASE):
            raise MultituneError(
                "A slice with a base or a residual_weight of its own is not offered here.", place, "Take it out."
            )
        sources = []
        for each in part["sources"]:
            if errors := [*_unknown(each, ("model", "layer_range", "parameters"), place)]:
                raise MultituneErrors(errors)
            first, last = each["layer_range"]
            name = _model(each["model"], place, base)
            parameters = _parameters(method, each.get("parameters"), place, one=True)
            sources.append(SliceSource(model=name, layers=(first, last), parameters=parameters))
        ordered = tuple(_in_order(sources, method, own, place))
        yield Slice(sources=ordered, parameters=_parameters(method, part.get("parameters"), place))


Merged = TypeVar("Merged", MergedModel, SliceSource)


def _in_order(found: list[Merged], method: str, base: str | None, where: str) -> list[Merged]:
    """Leave the base out of the models that have task vectors; slerp begins at its base."""
    if method == "slerp":
        if len(found) != 2 or base not in [each.model for each in found]:
            raise MultituneError(
                "slerp goes from base_model to one other model.", where, "List the two, and name one as base_model."
            )
        return sorted(found, key=lambda each: each.model != base)
    return found if method in WITHOUT_BASE else [each for each in found if each.model != base]


def _model(told: Any, where: str, base: str | None = None) -> str:
    """Return a model's name; "base+adapter" is the adapter, where base is the merge's own."""
    if isinstance(told, Mapping):
        inner = told.get("model", told)
        name = inner.get("path") if isinstance(inner, Mapping) else inner
        lora = told.get("lora")
        adapter = lora.get("path") if isinstance(lora, Mapping) else lora
    else:
        name, _, adapter = str(told).partition("+")
    if not adapter:
        return str(name)
    if name != base:
        raise MultituneError(
            f"The adapter '{adapter}' is on '{name}', which is not the base of the merge.",
            where,
            "Make that model base_model, or merge the adapter into it first.",
        )
    return str(adapter)


def _parameters(method: str, told: Any, where: str, *, one: bool = False) -> dict[str, Value]:
    """Return parameters by our names.

    Args:
        one: whether they are one model's.
    """
    known = METHOD_PARAMETERS[method]
    names = NAMES.get(method, {})
    found: dict[str, Value] = {}
    for name, value in dict(told or {}).items():
        ours = names.get(name, name)
        if name in WITHOUT_EFFECT:
            continue
        if name in FALSE_ALONE and not value:
            continue
        if ours not in known or (name != ours and name not in names) or name in names.values():
            if name in COMMON and ours not in known:
                logger.warning("%s: the method %s does not read %s; it is left out", where, method, name)
                continue
            offered = [*(name for name in known if name not in names.values()), *names]
            raise MultituneError(
                f"The method '{method}' has no parameter '{name}'.{nearest(name, offered)}",
                f"{where}.{name}",
                f"Its parameters: {', '.join(offered) or 'none'}.",
            )
        if one and not known[ours].each:
            raise MultituneError(
                f"The parameter '{name}' is one for the whole merge, not one per model.",
                f"{where}.{name}",
                "Give it under the merge's own parameters.",
            )
        found[ours] = _value(value, f"{where}.{name}")
    return found


def _value(told: Any, where: str) -> Value:
    """Return a number, a list over layers, or rules by name."""
    if isinstance(told, Mapping):
        told = [told]
    if not isinstance(told, list):
        return _scalar(told, where)
    if not any(isinstance(each, Mapping) for each in told):
        return _list(told, where)
    rules: dict[str, float | Schedule] = {}
    for rule in told:
        if not isinstance(rule, Mapping) or not {"value"} <= rule.keys() <= {"value", "filter"}:
            raise MultituneError(
                "A rule has a value and a filter, or a value alone.", where, "Write {filter: mlp, value: 0.5}."
            )
        value = _list(rule["value"], where) if isinstance(rule["value"], list) else _scalar(rule["value"], where)
        part = rule.get("filter")
        if part is None or part == "*":
            rules["default"] = value
            break  # nothing gets past it
        rules.setdefault(f"*{_literal(str(part))}*", value)
    return rules


def _literal(part: str) -> str:
    """Return a shell pattern that matches a text as it is."""
    return re.sub(r"([*?\[])", r"[\1]", part)


def _list(told: list[Any], where: str) -> Schedule:
    return tuple(_scalar(each, where) for each in told)


def _scalar(told: Any, where: str) -> float:
    try:
        return float(told)
    except (TypeError, ValueError):
        raise MultituneError(f"The value {told!r} is not a number.", where, "Write a number.") from None


def _dtype(data: Told, where: str) -> Any:
    """Return the type that is written; we compute in float32 whatever it is."""
    told = data.get("out_dtype") or data.get("dtype")
    if told is None:
        return None
    if told not in DTYPES:
        raise MultituneError(
            f"The type '{told}' is not offered.{nearest(str(told), DTYPES)}",
            f"{where}, dtype",
            f"Use {', '.join(DTYPES)}.",
        )
    return DTYPES[told]


def _vocabulary(data: Told, base: str | None, where: str) -> Any:
    told = data.get("tokenizer_source")
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, Mapping):
        if set(tokenizer) - {"source"}:
            raise MultituneError(
                "Rules for single tokens are not offered.", f"{where}, tokenizer", "Keep source alone: base or union."
            )
        told = tokenizer.get("source")
    if told is None:
        return "refuse"
    if told in ("base", "union"):
        return told
    if base is not None and str(told).removeprefix("model:") == base:
        return "base"
    raise MultituneError(
        f"The tokenizer of '{told}' cannot be taken.", f"{where}, tokenizer_source", "Use base or union."
    )


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _chat_template(data: Told, where: str) -> str | None:
    told = data.get("chat_template")
    if told is None or told == "auto":  # the base's tokenizer brings its own
        return None
    if told == "chatml":
        return CHATML
    if "{" not in str(told):
        raise MultituneError(
            f"The chat template '{told}' is not known by name.",
            f"{where}, chat_template",
            "Use auto, chatml, or write the template's text.",
        )
    return str(told)


def _unknown(told: Any, known: tuple[str, ...], where: str) -> Iterator[MultituneError]:
    for key in dict(told):
        if key not in known:
            yield MultituneError(
                f"There is no key '{key}' here.{nearest(str(key), known)}",
                f"{where}, {key}",
                f"Use one of: {', '.join(known)}.",
            )


def _warn_of_lists(config: MergeConfig) -> None:
    """Say which lists over layers give the final norm and head their first value: few mean that."""
    levels: list[tuple[str, Mapping[str, Value]]] = [("parameters", config.parameters)]
    levels += [(each.model, each.parameters) for each in config.models]
    for number, part in enumerate(config.slices):
        levels.append((f"slices[{number}]", part.parameters))
        levels += [(source.model, source.parameters) for source in part.sources]
    for where, parameters in levels:
        for name, value in parameters.items():
            outside = value.get("default", 0.0) if isinstance(value, dict) else value
            if isinstance(outside, tuple) and len(set(outside)) > 1:
                logger.warning(
                    "%s.%s: tensors outside the layers, final norm and head among them, take the first value of the "
                    "list (%g), as in mergekit; a rule by name gives them another",
                    where,
                    name,
                    outside[0],
                )
