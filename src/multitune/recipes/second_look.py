"""A second look at a recipe whose keys are faulty: what else is wrong, so that every mistake is told at once."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multitune.errors import MultituneError, closest
from multitune.recipes.checks import cross_checks
from multitune.recipes.reading import Document, KeyPath, data_folder
from multitune.recipes.schema import STEPS, Recipe
from multitune.recipes.schema_errors import allowed_keys, key_path, schema_errors, word_options

LOOKS = 4
"""Times that the rest of a recipe is looked at: a step whose kind was misspelt shows its own keys only then."""


def every_mistake(error: ValidationError, document: Document) -> list[MultituneError]:
    """Return the mistakes in a recipe's keys, and those that show once these are out of the way.

    Keys that are meant to be others are renamed, other faulty ones left out. Of what follows, only that is told which
    cannot come of the first mistakes: nothing about the same task or step, and nothing once a missing key was found.

    Args:
        error: what the schema found.
        document: the recipe; stays as it is.
    """
    found = list(schema_errors(error, document).errors)
    rest = replace(document, data=deepcopy(document.data), lines=dict(document.lines))
    changed: set[KeyPath] = set()
    for _ in range(LOOKS):
        if not (places := list(_put_aside(error, rest))):
            return found
        changed.update(places)
        try:
            recipe = Recipe.model_validate({**rest.data, "folder": _folder(rest)})
        except ValidationError as next_error:
            error = next_error
            above = {place[:length] for place in changed for length in range(len(place) + 1)}
            found += [one for one in schema_errors(error, rest).errors if _key(one) not in map(_dotted, above)]
            continue
        parts = {_dotted(place[:2]) for place in changed}
        return found + [one for one in cross_checks(recipe, rest) if ".".join(_key(one).split(".")[:2]) not in parts]
    return found


def _folder(document: Document) -> Path:
    """Return where the tasks' paths start, the recipe's own folder where the one that it names does not exist."""
    try:
        return data_folder(document)
    except MultituneError:
        return document.path.resolve().parent


def _put_aside(error: ValidationError, document: Document) -> Iterator[KeyPath]:
    """Rename or remove what is faulty, and yield where; nothing when a key is missing, which cannot be guessed."""
    details = error.errors()
    if any(detail["type"] == "missing" for detail in details):
        return
    keys = {key_path(detail["loc"], document.data): detail["type"] for detail in details}
    words = {key_path(detail["loc"], document.data): word_options(detail) for detail in details}
    allowed = {key: allowed_keys(key[:-1], document.data) for key in keys}
    for key in sorted(keys, key=lambda key: [str(part).zfill(6) for part in key], reverse=True):
        if not key:
            continue
        holder: Any = document.data
        for part in key[:-1]:
            holder = holder[part]
        if keys[key] == "unknown_step":
            if not (kinds := closest(str(holder[key[-1]].get("do")), STEPS)):
                continue
            holder[key[-1]]["do"] = kinds[0]
            yield (*key, "do")
            continue
        if isinstance(holder[key[-1]], str) and (options := closest(holder[key[-1]], words[key])):
            holder[key[-1]] = options[0]
            yield key
            continue
        value = holder.pop(key[-1])
        meant = closest(str(key[-1]), allowed[key]) if keys[key] == "extra_forbidden" else []
        if meant and meant[0] not in holder:
            holder[meant[0]] = value
            document.lines[(*key[:-1], meant[0])] = document.lines.get(key, 0)
        yield key


def _key(error: MultituneError) -> str:
    return error.where.rpartition(", ")[2]


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))
