"""What the schema finds wrong with a file, in the reader's words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.recipes.reading import Document, KeyPath
from multitune.recipes.schema import LATER, STEPS, TrainStep, json_schema


def schema_errors(
    error: ValidationError, document: Document, below: KeyPath = (), schema: dict[str, Any] | None = None
) -> MultituneErrors:
    """Translate what pydantic found into our words, with file, line and nearest keys.

    Args:
        error: as raised when (a part of) the document was validated.
        document: the file.
        below: key path of the validated part.
        schema: of the document; None: that of a recipe.
    """
    schema = schema or json_schema()
    details = [{**detail, "loc": (*below, *detail["loc"])} for detail in error.errors()]
    details = [detail for detail in details if not _other_branch(detail, details)]
    errors = [_translate(detail, document, schema) for detail in details]
    unique = {(e.what, e.where): e for e in errors}  # branches of a union repeat themselves
    return MultituneErrors(unique.values())


def _other_branch(detail: Any, details: Sequence[Any]) -> bool:
    """Whether a mapping whose own keys are at fault was also held against the word that might stand in its place."""
    above = tuple(part for part in detail["loc"] if isinstance(part, str))[:-1]
    beside = any(len(other["loc"]) > len(detail["loc"]) and other["loc"][: len(above)] == above for other in details)
    return detail["type"] == "literal_error" and isinstance(detail["input"], dict) and beside


def _translate(detail: dict[str, Any], document: Document, schema: dict[str, Any]) -> MultituneError:
    key = key_path(detail["loc"], document.data)
    where = document.where(key)
    name = str(key[-1]) if key else ""
    kind = detail["type"]
    if kind == "extra_forbidden":
        allowed = sorted(_properties(schema, key[:-1], document.data))
        if "estimator_options" in allowed and name in TrainStep.model_fields and name not in allowed:
            return MultituneError(
                f"The key '{name}' is for language models and has no meaning for an estimator.",
                where,
                "Take it out; what the estimator is told stands in estimator_options.",
            )
        mend = f"Use one of: {', '.join(allowed)}." if allowed else "Remove it."
        return MultituneError(f"There is no key '{name}' here.{nearest(name, allowed)}", where, mend)
    if kind == "missing":
        return MultituneError(f"The key '{detail['loc'][-1]}' is missing.", where, f"Add {detail['loc'][-1]}.")
    if kind == "unknown_step":
        return _unknown_step(detail["input"], where, str(detail["msg"]))
    if kind == "union_tag_invalid":
        tag, key_of_tag = detail["ctx"]["tag"], detail["ctx"]["discriminator"].strip("'")
        expected = detail["ctx"]["expected_tags"].replace("'", "").split(", ")
        return MultituneError(
            f"There is no {key_of_tag} '{tag}'.{nearest(tag, expected)}", where, f"Use one of: {', '.join(expected)}."
        )
    if kind == "union_tag_not_found":
        key_of_tag = detail["ctx"]["discriminator"].strip("'")
        return MultituneError(f"'{name}' does not say its {key_of_tag}.", where, f"Add {key_of_tag} to it.")
    if kind == "value_error":
        what = str(detail["ctx"]["error"])
        sentence = what[0].upper() + what[1:] + ("" if what.endswith((".", "?")) else ".")
        return MultituneError(sentence, where, "Correct it.")
    received = detail["input"]
    if isinstance(received, dict | list):
        shown = "a list" if isinstance(received, list) else "keys and values"
    else:
        shown = json.dumps(received) if received is None or isinstance(received, bool) else repr(received)
    options = word_options(detail)
    closest_option = nearest(received, options) if isinstance(received, str) else ""
    return MultituneError(f"'{name}' cannot be {shown}.{closest_option}", where, _wanted(detail, options))


_WANTED = {
    "int": "Give a whole number.",
    "float": "Give a number.",
    "bool": "Say true or false.",
    "string": "Give text.",
    "list": "Give a list: [a, b].",
    "tuple": "Give a list: [a, b].",
    "dict": "Give keys and values: {key: value}.",
    "mapping": "Give keys and values: {key: value}.",
    "model": "Give keys and values: {key: value}.",
    "greater_than": "Give more than {gt}.",
    "greater_than_equal": "Give {ge} or more.",
    "less_than": "Give less than {lt}.",
    "less_than_equal": "Give {le} or less.",
    "finite_number": "Give a finite number.",
    "too_short": "Give {min_length} or more.",
    "too_long": "Give {max_length} at most.",
}
"""What is wanted, by pydantic's type of error or the first word of it."""


def word_options(detail: Mapping[str, Any]) -> list[str]:
    """Return the words that a value may be, where it has to be one of some."""
    return re.findall(r"'([^']*)'", detail["ctx"]["expected"]) if detail["type"] == "literal_error" else []


def _wanted(detail: Mapping[str, Any], options: Sequence[str]) -> str:
    if options:
        return f"Use {'one of: ' if len(options) > 1 else ''}{', '.join(options)}."
    kind = detail["type"]
    wanted = _WANTED.get(kind) or _WANTED.get(kind.partition("_")[0])
    return wanted.format(**detail.get("ctx", {})) if wanted else f"{detail['msg']}."


def _unknown_step(value: Any, where: str, message: str) -> MultituneError:
    do = value.get("do") if isinstance(value, dict) else value
    if do in LATER:
        return MultituneError(
            f"Steps of the kind '{do}' are not in this version of multitune.",
            where,
            f"Use steps of the kinds {', '.join(STEPS)}.",
        )
    return MultituneError(f"There is no step of the kind '{do}'.{nearest(str(do), STEPS)}", where, f"{message}.")


def key_path(location: Sequence[str | int], data: Any) -> KeyPath:
    """Return the part of an error's location that is keys of the file; names of union branches fall out."""
    key: list[str | int] = []
    part: Any
    for i, part in enumerate(location):
        if (isinstance(data, Mapping) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            key.append(part)
            data = data[part]
        elif i == len(location) - 1 and isinstance(data, Mapping) and isinstance(part, str) and part == location[-1]:
            continue  # a missing key: the place is the mapping that lacks it
    return tuple(key)


def allowed_keys(key: KeyPath, data: Any) -> set[str]:
    """Return the keys that a recipe may have at a place, over all branches of unions that fit its data there."""
    return _properties(json_schema(), key, data)


def _properties(schema: dict[str, Any], key: KeyPath, data: Any) -> set[str]:
    """Return the keys that the schema allows at a place, over all branches of unions that fit the data there."""
    places = [schema]
    part: Any
    for part in key:
        data = data[part] if isinstance(data, Mapping | list) else None
        places = [below for place in places for below in _below(_branches(place, schema), part)]
    branches = [b for place in places for b in _branches(place, schema) if "properties" in b]
    fitting = [b for b in branches if _fits_constants(b, data)]
    if isinstance(data, Mapping) and (
        chosen := [b for b in fitting if b.get("required") and set(b["required"]) <= set(data)]
    ):
        fitting = chosen  # a key that a branch cannot do without, such as estimator, says which one is meant
    return {name for branch in fitting or branches for name in branch["properties"]}


def _branches(place: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in place:
        place = schema["$defs"][place["$ref"].rsplit("/", 1)[1]]
    options = place.get("anyOf", []) + place.get("oneOf", [])
    if not options:
        yield place
    for option in options:
        yield from _branches(option, schema)


def _below(branches: Iterator[dict[str, Any]], part: str | int) -> Iterator[dict[str, Any]]:
    for branch in branches:
        if isinstance(part, int):
            if "items" in branch:
                yield branch["items"]
        elif part in branch.get("properties", {}):
            yield branch["properties"][part]
        elif isinstance(branch.get("additionalProperties"), dict):
            yield branch["additionalProperties"]
        else:
            yield from branch.get("patternProperties", {}).values()


def _fits_constants(branch: dict[str, Any], data: Any) -> bool:
    """Tell whether a union's branch is the one meant: its constant keys (do, policy) are what the data say."""
    constants = {n: p["const"] for n, p in branch["properties"].items() if "const" in p}
    if not isinstance(data, Mapping):
        return True
    return all(data.get(name, branch["properties"][name].get("default")) == value for name, value in constants.items())
