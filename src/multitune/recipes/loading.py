"""From a YAML file to a checked recipe, with every mistake told at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.recipes.checks import cross_checks
from multitune.recipes.reading import Document, KeyPath, assign, override, read_yaml
from multitune.recipes.schema import BASE, LATER, STEPS, FuseStep, MergeStep, Recipe, Step, json_schema
from multitune.recipes.sweep import Axis, Sweep, Value, Variant, points, read_axes, refuse_too_many
from multitune.weights.renaming import renamed


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe without reading data, weights or a heavy library.

    Args:
        path: the YAML file; the recipe's relative paths are relative to its folder.
        overrides: ``key.path=value`` assignments.

    Raises:
        MultituneErrors: everything that is wrong, each with file, line, key and the mend.
        MultituneError: the recipe is a sweep.
    """
    loaded = load(path, overrides)
    if isinstance(loaded, Sweep):
        raise MultituneError(
            "The recipe is a sweep, and one run is wanted.", f"{path}, sweep", "Take sweep out, or --set sweep=null."
        )
    return loaded


def load(path: Path | str, overrides: Sequence[str] = (), *, many: bool = False) -> Recipe | Sweep:
    """Read, override and check a recipe, or every variant of one that declares a sweep.

    Args:
        path, overrides: as for ``load_recipe``; ``sweep.<key>=[...]`` sets an axis.
        many: whether a sweep may have more variants than MOST_VARIANTS.

    Raises:
        MultituneErrors: everything that is wrong; what is wrong with several variants is told once.
    """
    document = read_yaml(Path(path))
    override(document, [one for one in overrides if one.startswith(("sweep=", "sweep."))])
    overrides = [one for one in overrides if not one.startswith(("sweep=", "sweep."))]
    axes = read_axes(document)
    if not axes:
        document.data.pop("sweep", None)
        return _checked(document, overrides, {})
    _refuse_hidden(overrides, axes)
    if not many:
        refuse_too_many(axes, document.where(("sweep",)))
    del document.data["sweep"]
    variants, errors = [], {}
    for name, point in points(axes):
        assignments = {axis.key: point[axis.name] for axis in axes}
        copied = replace(document, data=deepcopy(document.data), assigned=dict(document.assigned))
        try:
            recipe = _checked(copied, overrides, assignments)
        except MultituneError as error:
            each = error.errors if isinstance(error, MultituneErrors) else [error]
            errors.update({(one.what, one.where): one for one in each})
            continue
        variants.append(Variant(name, {axis: value.name for axis, value in point.items()}, recipe))
    if errors:
        raise MultituneErrors(errors.values())
    return Sweep(variants[0].recipe.name, axes, tuple(variants))


def _checked(document: Document, overrides: Sequence[str], assignments: Mapping[str, Value]) -> Recipe:
    """Return the recipe of a document under overrides and the values of a sweep's axes, which have the last word."""
    override(document, [assignment for assignment in overrides if assignment.startswith("tasks=")])
    _assign_all(document, {key: value for key, value in assignments.items() if key == "tasks"})
    _include_suite(document)
    override(document, [assignment for assignment in overrides if not assignment.startswith("tasks=")])
    _assign_all(document, {key: value for key, value in assignments.items() if key != "tasks"})
    folder = document.path.resolve().parent
    try:
        recipe = Recipe.model_validate({**document.data, "folder": data_folder(document)})
    except ValidationError as error:
        raise schema_errors(error, document) from None
    if errors := list(cross_checks(recipe, document)):
        raise MultituneErrors(errors)
    if (folder / recipe.model.name).is_dir():  # like every path of a recipe, a model's is relative to its folder
        beside = recipe.model.model_copy(update={"name": str(folder / recipe.model.name)})
        recipe = recipe.model_copy(update={"model": beside})
    return recipe.model_copy(
        update={"steps": {name: _beside(step, recipe, folder) for name, step in recipe.steps.items()}}
    )


def _beside(step: Step, recipe: Recipe, folder: Path) -> Step:
    """Return a step whose models' folders do not depend on where the program runs."""

    def absolute(name: str) -> str:
        outside = name != BASE and name.partition(".")[0] not in recipe.steps
        return str(folder / name) if outside and (folder / name).is_dir() else name

    if isinstance(step, MergeStep):
        return renamed(step, absolute)
    if not isinstance(step, FuseStep):
        return step
    found = {"model": absolute(step.model), "experts": tuple(map(absolute, step.experts))}
    return step.model_copy(update=found | ({"small": absolute(step.small)} if step.small is not None else {}))


def data_folder(document: Document) -> Path:
    """Return the absolute folder that the paths of a document's tasks start from.

    Raises:
        MultituneError: its data_folder does not exist.
    """
    folder = document.path.resolve().parent
    written = document.data.get("data_folder")
    if not isinstance(written, str):  # absent, or a mistake that the schema tells
        return folder
    if not (found := (folder / Path(written).expanduser()).resolve()).is_dir():
        raise MultituneError(
            f"The data folder '{written}' does not exist.",
            document.where(("data_folder",)),
            "Correct the path, or set another one for this run: --set data_folder=/my/data.",
        )
    return found


def _assign_all(document: Document, assignments: Mapping[str, Value]) -> None:
    for key, value in assignments.items():
        assign(document, key, deepcopy(value.value), value.where)


def _refuse_hidden(overrides: Sequence[str], axes: Sequence[Axis]) -> None:
    """Refuse an override that an axis would override in turn."""
    for assignment in overrides:
        name = assignment.partition("=")[0]
        for axis in axes:
            if f"{name}.".startswith(f"{axis.key}."):
                raise MultituneError(
                    f"'{axis.key}' is an axis of the sweep, which has the last word.",
                    f"--set {assignment}",
                    f"Set the axis: --set 'sweep.{axis.key}=[...]'.",
                )


def _include_suite(document: Document) -> None:
    """Put the tasks of a suite file in the place of its path; the suite's paths are relative to the suite's folder."""
    name = document.data.get("tasks")
    if not isinstance(name, str):
        return
    suite = read_yaml(document.path.parent / name)
    tasks = suite.data.get("tasks")
    if not isinstance(tasks, dict):
        raise MultituneError("A suite file needs the key tasks.", str(suite.path), "Write tasks: {name: {...}}.")
    beside = suite.path.resolve().parent
    for task in tasks.values():
        for split in ("train", "validation", "test"):
            source = task.get(split) if isinstance(task, dict) else None
            if isinstance(source, str):
                task[split] = str(beside / source)
            elif isinstance(source, dict) and isinstance(source.get("path"), str):
                task[split] = {**source, "path": str(beside / source["path"])}
    document.data["tasks"] = tasks
    document.suite = suite


# -- the schema's errors, in the reader's words ----------------------------------------------------------------------


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
    key = _key_path(detail["loc"], document.data)
    where = document.where(key)
    name = str(key[-1]) if key else ""
    kind = detail["type"]
    if kind == "extra_forbidden":
        allowed = sorted(_properties(schema, key[:-1], document.data))
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
    shown = f"{type(received).__name__} {received!r}" if not isinstance(received, dict | list) else "a mapping or list"
    return MultituneError(f"'{name}' cannot be {shown}.", where, f"{detail['msg']}.")


def _unknown_step(value: Any, where: str, message: str) -> MultituneError:
    do = value.get("do") if isinstance(value, dict) else value
    if do in LATER:
        return MultituneError(
            f"Steps of the kind '{do}' are not in this version of multitune.",
            where,
            f"Use steps of the kinds {', '.join(STEPS)}.",
        )
    return MultituneError(f"There is no step of the kind '{do}'.{nearest(str(do), STEPS)}", where, f"{message}.")


def _key_path(location: Sequence[str | int], data: Any) -> KeyPath:
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


def _properties(schema: dict[str, Any], key: KeyPath, data: Any) -> set[str]:
    """Return the keys that the schema allows at a place, over all branches of unions that fit the data there."""
    places = [schema]
    part: Any
    for part in key:
        data = data[part] if isinstance(data, Mapping | list) else None
        places = [below for place in places for below in _below(_branches(place, schema), part)]
    branches = [b for place in places for b in _branches(place, schema) if "properties" in b]
    fitting = [b for b in branches if _fits_constants(b, data)]
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
