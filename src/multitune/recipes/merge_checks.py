"""What the keys of a merge step say of one another and of the rest of the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from multitune.adaptation.methods import WITHOUT_ADAPTER
from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.models.config import ModelConfig
from multitune.models.location import PACKAGE_PREFIX, resolve
from multitune.recipes.graph import estimator_nodes, with_all_models
from multitune.recipes.merge_learning import about_tasks, check_learning, looks_at_rows
from multitune.recipes.merge_search import candidates, searched_tasks
from multitune.recipes.reading import Document, KeyPath
from multitune.recipes.schema import BASE, EstimatorStep, FuseStep, MergeStep, Recipe, TrainStep
from multitune.weights.config import MergeConfig
from multitune.weights.parameters import check

LORA = "lora"


def check_merge(name: str, step: MergeStep, recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    """Yield every mistake of a merge step that can be found without opening a model.

    Args:
        name: of the step.
        step: valid by itself, key by key.
        recipe: that it is a step of.
        document: the file, for lines.
    """
    key: KeyPath = ("steps", name)
    known = made_models(recipe)
    unknown = False
    for where, model in _named(step):
        for error in _about_model(model, known, recipe, document, (*key, *where)):
            unknown = True
            yield error
    whole = with_all_models(step, recipe)
    config = MergeConfig(**whole.model_dump(include=set(MergeConfig.model_fields)))
    places = _places(step, whole)
    try:
        if looks_at_rows(step):
            check_learning(step, config)
        elif step.search is None:
            check(config)
        else:
            candidates(config, step.search.over)
    except MultituneError as error:
        for one in error.errors if isinstance(error, MultituneErrors) else [error]:
            if not (unknown and one.what.startswith("A merge needs")):
                yield MultituneError(one.what, document.where((*key, *_key_path(str(one.where), places))), one.mend)
    for one in about_tasks(step, recipe):
        yield MultituneError(one.what, document.where((*key, one.where)), one.mend)
    if step.search is not None and step.tasks == "all" and not looks_at_rows(step) and not searched_tasks(step, recipe):
        yield MultituneError(
            "Candidates are compared on validation rows, and no task has any.",
            document.where((*key, "search")),
            "Give the tasks validation sources, for example validation: {fraction: 0.1}.",
        )


def made_models(recipe: Recipe) -> list[str]:
    """Return the names of the recipe's own model and of those that its train and merge steps leave."""
    models = [BASE]
    for name, step in recipe.steps.items():
        if isinstance(step, TrainStep):
            models += [f"{name}.{task}" for task in recipe.training_tasks] if step.tasks == "each" else [name]
        elif isinstance(step, MergeStep):
            models.append(name)
    return models


def made_estimators(recipe: Recipe) -> list[str]:
    """Return the names of what the steps with an estimator leave."""
    return [
        node.name
        for name, step in recipe.steps.items()
        if isinstance(step, EstimatorStep)
        for node in estimator_nodes(name, step, recipe)
    ]


def outside_model(name: str, document: Document) -> ModelConfig:
    """Return where a model lies that no step makes; a folder is relative to the recipe's."""
    beside = document.path.resolve().parent / name
    return ModelConfig(name=str(beside) if beside.is_dir() else name)


def is_model(config: ModelConfig) -> bool:
    """Whether a name without a slash is a model: a folder, the embedded one, or one of a package."""
    return Path(config.name).is_dir() or config.name == "tiny" or config.name.startswith(PACKAGE_PREFIX)


def _named(step: MergeStep) -> Iterator[tuple[KeyPath, str]]:
    if step.base is not None:
        yield ("base",), step.base
    for number, each in enumerate(step.models):
        yield ("models", number), each.model
    for number, part in enumerate(step.slices):
        for place, source in enumerate(part.sources):
            yield ("slices", number, "sources", place), source.model


def _about_model(
    model: str, known: Sequence[str], recipe: Recipe, document: Document, key: KeyPath
) -> Iterator[MultituneError]:
    where = document.where(key)
    made = recipe.steps.get(model.partition(".")[0])
    if isinstance(made, FuseStep):
        yield MultituneError(
            f"The step '{model}' fuses logits; it has no weights to merge.", where, "Name the models that it fuses."
        )
    elif isinstance(made, TrainStep):
        if model not in known and not (made.tasks == "each" and model in recipe.steps and key[-1] != "base"):
            yield _no_model(model, known, where)
        elif made.export == "delta":
            yield MultituneError(
                f"The step '{model}' leaves the tensors that it trained alone, and a merge reads whole models.",
                where,
                f"Set steps.{model.partition('.')[0]}.export to merged.",
            )
        elif made.export == "adapter" and (left := recipe.adapter_of(made).method) not in (*WITHOUT_ADAPTER, LORA):
            yield MultituneError(
                f"The step '{model}' leaves an adapter of type {left}, which is no sum on the weights.",
                where,
                f"Set steps.{model.partition('.')[0]}.export to merged.",
            )
        elif made.export == "adapter" and left == LORA and key[-1] == "base":
            yield MultituneError(
                f"The step '{model}' leaves an adapter, which cannot be the base of a merge.",
                where,
                f"Set steps.{model.partition('.')[0]}.export to merged.",
            )
    elif model not in known:
        outside = outside_model(model, document)
        if model.partition(".")[0] in recipe.steps or ("/" not in model and not is_model(outside)):
            yield _no_model(model, known, where)
            return
        try:
            resolve(outside)
        except MultituneError as error:
            yield MultituneError(error.what, where, error.mend)


def _no_model(model: str, known: Sequence[str], where: str) -> MultituneError:
    return MultituneError(
        f"There is no model '{model}'.{nearest(model, known)}",
        where,
        f"Use one of: {', '.join(known)}; or the folder or hub id of a model.",
    )


def _places(step: MergeStep, whole: MergeStep) -> list[int]:
    """Return for every model of the merge its number in the step as written."""
    places: list[int] = []
    rest = [each.model for each in whole.models]
    for number, each in enumerate(step.models):
        while rest and (rest[0] == each.model or rest[0].startswith(f"{each.model}.")):
            places.append(number)
            rest.pop(0)
    return places


def _key_path(where: str, places: Sequence[int]) -> KeyPath:
    """Split "models[2].parameters.weight" into keys of the step as written."""
    if where.startswith("method:"):
        return ("method",)
    keys: list[str | int] = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", where)]
    if where.startswith(("search.over.", "lines.")):
        keys = list(where.split(".", 2))
    if len(keys) > 1 and keys[0] == "models" and isinstance(keys[1], int):
        keys[1] = places[keys[1]] if keys[1] < len(places) else keys[1]
    return tuple(keys)
