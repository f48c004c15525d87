"""From a YAML file to a checked recipe, with every mistake told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.checks import cross_checks
from multitune.recipes.reading import Document, assign, data_folder, override, read_yaml
from multitune.recipes.schema import BASE, FuseStep, MergeStep, Recipe, Step
from multitune.recipes.second_look import every_mistake
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
        raise MultituneErrors(every_mistake(error, document)) from None
    if errors := list(cross_checks(recipe, document)):
        raise MultituneErrors(errors)
    if (
        recipe.model is not None and (folder / recipe.model.name).is_dir()
    ):  # like every path of a recipe, a model's is relative to its folder
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
