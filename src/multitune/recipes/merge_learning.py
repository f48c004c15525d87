"""What a merge step must say where its method looks at rows: aTLAS, AdaMerging, Fisher merging, RegMean."""

from __future__ import annotations

from collections.abc import Iterator

from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.recipes.merge_search import searched_tasks
from multitune.recipes.schema import MergeStep, Recipe
from multitune.weights.config import MergeConfig, MergedModel
from multitune.weights.learned.step_config import EACH_MODEL, LEARNED_METHODS, learned_settings
from multitune.weights.parameters import check


def looks_at_rows(step: MergeStep) -> bool:
    """Whether a step's method is one of ``LEARNED_METHODS``."""
    return step.method in LEARNED_METHODS


def check_learning(step: MergeStep, config: MergeConfig) -> None:
    """Check a merge that looks at rows, as far as no model needs to be opened.

    Args:
        step: as written.
        config: its merge, with every model named.

    Raises:
        MultituneErrors: everything that is wrong; ``where`` is a path of keys below the step.
    """
    errors = [*_about_step(step, config), *_about_own(config)]
    alike = config.model_copy(update={"method": "task_arithmetic", "parameters": {}, "models": _bare(config)})
    for look in (lambda: learned_settings(config), lambda: check(alike)):
        try:
            look()
        except MultituneErrors as found:
            errors += found.errors
        except MultituneError as found:
            errors.append(found)
    if errors:
        raise MultituneErrors(errors)


def about_tasks(step: MergeStep, recipe: Recipe) -> Iterator[MultituneError]:
    """Yield what is wrong with the tasks whose validation rows a step looks at; ``where`` is a key below the step."""
    found = searched_tasks(step, recipe)
    if isinstance(step.tasks, tuple):
        unknown = [name for name in step.tasks if name not in recipe.tasks]
        lacking = [name for name in step.tasks if name in recipe.tasks and name not in found]
        if unknown:
            yield MultituneError(
                f"There is no task '{unknown[0]}'.{nearest(unknown[0], recipe.tasks)}",
                "tasks",
                f"Choose from: {', '.join(recipe.tasks)}.",
            )
        elif step.search is None and not looks_at_rows(step):
            yield MultituneError(
                f"A merge by '{step.method}' without a search looks at no rows.", "tasks", "Take tasks out, or search."
            )
        elif lacking:
            yield MultituneError(
                f"The step looks at validation rows, and there are none for {', '.join(lacking)}.",
                "tasks",
                "Give every task a validation source, for example validation: {fraction: 0.05}.",
            )
    elif looks_at_rows(step) and not found:
        yield MultituneError(
            f"The method '{step.method}' looks at validation rows, and no training task has any.",
            "method",
            "Give the tasks validation sources, for example validation: {fraction: 0.1}.",
        )


def _bare(config: MergeConfig) -> tuple[MergedModel, ...]:
    return tuple(MergedModel(model=each.model) for each in config.models)


def _about_step(step: MergeStep, config: MergeConfig) -> Iterator[MultituneError]:
    method = step.method
    for key, given in (("search", step.search), ("lines", config.lines), ("slices", config.slices)):
        if given:
            yield MultituneError(
                f"The method '{method}' finds its coefficients from rows and takes no {key}.", key, f"Take {key} out."
            )
    if config.vocabulary != "refuse":
        yield MultituneError(
            f"The method '{method}' runs the models on rows and needs them to have one vocabulary.",
            "vocabulary",
            "Take it out, and merge models of one vocabulary.",
        )


def _about_own(config: MergeConfig) -> Iterator[MultituneError]:
    allowed = EACH_MODEL.get(config.method, ())
    for number, each in enumerate(config.models):
        where = f"models[{number}].parameters"
        for name in each.parameters:
            if name not in allowed:
                yield MultituneError(
                    f"The parameter '{name}' is one for the whole merge by '{config.method}', not one per model."
                    f"{nearest(name, allowed)}",
                    f"{where}.{name}",
                    f"Each model may have: {', '.join(allowed) or 'none'}.",
                )
                return
        if each.parameters:
            try:
                learned_settings(config.model_copy(update={"parameters": {}}), each.parameters)
            except MultituneErrors as found:
                yield from (MultituneError(one.what, f"models[{number}].{one.where}", one.mend) for one in found.errors)
