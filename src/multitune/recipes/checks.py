"""What a recipe's keys say of one another: found without data, weights or a heavy library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

from multitune.adaptation.methods import CACHED_PREFIX, METHODS, WITHOUT_ADAPTER
from multitune.decoding.fusion_config import check_fusion
from multitune.errors import MultituneError, nearest
from multitune.mixing.policies import check_names
from multitune.models.location import resolve
from multitune.objectives.balancing.config import GemConfig
from multitune.recipes.chain_checks import check_chains
from multitune.recipes.graph import build, with_all_experts
from multitune.recipes.merge_checks import check_merge, is_model, made_estimators, made_models, outside_model
from multitune.recipes.reading import Document, KeyPath
from multitune.recipes.schema import BASE, EstimatorStep, FuseStep, MergeStep, Recipe, ScoreStep, TrainStep
from multitune.recipes.shot_checks import check_shots
from multitune.recipes.soft_prompts import check_soft_prompt
from multitune.recipes.table_checks import check_estimator, check_model_is_there, check_table_tasks
from multitune.scoring.score import scored_split
from multitune.tasks.gpt3 import ARITHMETIC, SCRAMBLES
from multitune.tasks.metrics import metric
from multitune.tasks.sources import source_files
from multitune.tasks.synthetic import HELD_OUT_SKILLS, SKILLS
from multitune.tasks.task import Source, Split, Task
from multitune.tasks.templates import compile_template
from multitune.training.config import WITHOUT_WEIGHTS

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GENERATED = {"synthetic": [*SKILLS, *HELD_OUT_SKILLS], "gpt3": [*ARITHMETIC, *SCRAMBLES]}


def cross_checks(recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    """Yield every mistake that no single key shows: names that nothing has, files, templates, cycles, what cannot run.

    Args:
        recipe: valid by itself, key by key.
        document: the file, for lines.
    """
    yield from check_model_is_there(recipe, document)
    for name, task in recipe.tasks.items():
        yield from _check_task(name, task, recipe, document)
    yield from check_table_tasks(recipe, document)
    if recipe.score:
        yield from check_shots(recipe.score, tuple(recipe.tasks), recipe, document, ("score",))
    for name, step in recipe.steps.items():
        if isinstance(step, EstimatorStep):
            yield from _check_trained_tasks(name, step, recipe, document)
            yield from check_estimator(name, step, recipe, document)
            continue
        if isinstance(step, FuseStep):
            yield from _check_fuse(name, step, recipe, document)
            continue
        if isinstance(step, MergeStep):
            yield from check_merge(name, step, recipe, document)
            continue
        yield from _check_model_of(name, step, recipe, document)
        if isinstance(step, TrainStep):
            yield from _check_train(name, step, recipe, document)
        else:
            yield from _check_score(name, step, recipe, document)
    if BASE in recipe.steps:
        yield MultituneError(
            "A step cannot be called base.", document.where(("steps", BASE)), "base is the recipe's model; rename it."
        )
        return
    try:
        build(recipe)
    except MultituneError as error:
        yield MultituneError(error.what, document.where(tuple(error.where.split("."))), error.mend)
        return
    yield from check_chains(recipe, document)


# -- tasks -------------------------------------------------------------------------------------------------------------


def _check_task(name: str, task: Task, recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    key: KeyPath = ("tasks", name)
    for split in SPLITS:
        source = task.source(split)
        if source is not None:
            yield from _caught(partial(source_files, source, recipe.folder), document, (*key, split))
            yield from _check_origin(source, document, (*key, split))
    for role, templates in _templates_of(task):
        for text in templates:
            yield from _caught(partial(compile_template, text, f"tasks.{name}.{role}"), document, (*key, role))
    for metric_name in task.metrics:
        yield from _check_metric(metric_name, task, document, (*key, "metrics"))
    if task.held_out and scored_split(task, "test") is None:
        yield MultituneError(
            f"The held-out task '{name}' has nothing to be scored on.", document.where(key), "Give it a test source."
        )
    if not task.held_out and task.train is None:
        yield MultituneError(
            f"The task '{name}' has no train source.", document.where(key), "Add train, or say held_out: true."
        )
    if recipe.model is not None and recipe.model.form == "encoder" and task.kind in ("generate", "choose"):
        yield MultituneError(
            f"An encoder has one head per task and cannot answer tasks of kind {task.kind}.",
            document.where((*key, "kind")),
            "Make it kind label or regress, or take a causal or encoder-decoder model.",
        )


def _templates_of(task: Task) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ("prompt", task.prompt), ("target", task.target), ("answer_choices", task.answer_choices)


def _check_origin(source: Source, document: Document, key: KeyPath) -> Iterator[MultituneError]:
    """Check what can be known of a generator or hub data set before it is called."""
    if source.hub is not None and source.split is None:
        yield MultituneError(
            f"The hub data set '{source.hub}' has several splits.",
            document.where(key),
            "Add split: train, for example.",
        )
    module, colon, name = (source.generator or "").partition(":")
    if source.generator is not None and not (module and colon and name):
        yield MultituneError(
            f"'{source.generator}' names no generator.",
            document.where((*key, "generator")),
            "Write package.module:function, synthetic:SKILL or gpt3:TASK.",
        )
    elif name not in (names := GENERATED.get(module, [name])):
        yield MultituneError(
            f"There is no {module} {'skill' if module == 'synthetic' else 'task'} '{name}'.{nearest(name, names)}",
            document.where((*key, "generator")),
            f"Use one of: {', '.join(names)}.",
        )


def _check_metric(name: str, task: Task, document: Document, key: KeyPath) -> Iterator[MultituneError]:
    try:
        kinds = metric(name).kinds
    except MultituneError as error:
        yield MultituneError(error.what, document.where(key), error.mend)
        return
    if task.kind is not None and task.kind not in kinds:
        yield MultituneError(
            f"The metric {name} is for tasks of kind {' or '.join(kinds)}, not {task.kind}.",
            document.where(key),
            "Take it out, or leave metrics empty for those of the kind.",
        )


# -- steps -------------------------------------------------------------------------------------------------------------


def _check_model_of(
    name: str, step: TrainStep | ScoreStep, recipe: Recipe, document: Document
) -> Iterator[MultituneError]:
    models = made_models(recipe)
    if isinstance(step, ScoreStep):
        models += [other for other, made in recipe.steps.items() if isinstance(made, FuseStep)]
        models += made_estimators(recipe)
    if step.model not in models:
        yield MultituneError(
            f"There is no model '{step.model}'.{nearest(step.model, models)}",
            document.where(("steps", name, "model")),
            f"Use one of: {', '.join(models)}.",
        )


def _check_fuse(name: str, step: FuseStep, recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    key: KeyPath = ("steps", name)
    if step.small is None:
        yield MultituneError(
            "There is no small base: what an expert has learned is told by its difference from it.",
            document.where(key),
            "Add small: the model that the experts were tuned from; base, where the recipe trains them.",
        )
    keys: list[KeyPath] = [("model",), *([("small",)] if step.small is not None else [])]
    keys += [("experts", place) for place in range(len(step.experts))]
    known = made_models(recipe)
    arms = {name for name, one in recipe.train_steps() if one.tasks == "each"}
    for place, source in enumerate(step.sources):
        where = document.where((*key, *keys[place]))
        if source in step.sources[:place]:
            yield MultituneError(
                f"The model '{source}' is given twice.",
                where,
                "Give the large model, the small base and every expert once.",
            )
        elif source not in known and not (source in arms and keys[place][0] == "experts"):
            outside = outside_model(source, document)
            if source.partition(".")[0] in recipe.steps or ("/" not in source and not is_model(outside)):
                yield MultituneError(
                    f"There is no model '{source}'.{nearest(source, known)}",
                    where,
                    f"Use one of: {', '.join(known)}; or the folder or hub id of a model.",
                )
            else:
                yield from _caught(partial(resolve, outside), document, (*key, *keys[place]))
    try:
        check_fusion(step, len(with_all_experts(step, recipe).experts))
    except MultituneError as error:
        yield MultituneError(error.what, document.where((*key, error.where.partition(":")[0])), error.mend)


def _check_trained_tasks(
    name: str, step: TrainStep | EstimatorStep, recipe: Recipe, document: Document
) -> Iterator[MultituneError]:
    key, known = ("steps", name), recipe.training_tasks
    if not known:
        yield MultituneError(
            "All tasks are held out; there is nothing to train on.", document.where(key), "Give one a train source."
        )
    named = step.tasks if isinstance(step.tasks, tuple) else known
    yield from _check_task_names(named, known, recipe, document, (*key, "tasks"))


def _check_train(name: str, step: TrainStep, recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    key: KeyPath = ("steps", name)
    yield from _check_trained_tasks(name, step, recipe, document)
    named = step.tasks if isinstance(step.tasks, tuple) else recipe.training_tasks
    focal = step.training.focal
    weighed: list[tuple[str, ...]] = [("task_weights", task) for task in step.training.task_weights]
    weighed += [("focal", "alpha", task) for task in (focal.alpha if focal else ())]
    for *keys, task in weighed:
        if task not in named:
            yield MultituneError(
                f"There is no task '{task}' in this step.{nearest(task, named)}",
                document.where((*key, "training", *keys, task)),
                f"Use some of: {', '.join(named)}.",
            )
    yield from _check_weights(step, named, recipe, document, (*key, "training"))
    yield from _check_earlier(step, named, document, (*key, "training", "balancer", "earlier"))
    yield from _check_validation(step, named, recipe, document, (*key, "training"))
    if step.training.aggregation in WITHOUT_WEIGHTS and step.tasks != "each":
        for task in named:
            if task in recipe.tasks and recipe.tasks[task].weight != 1.0:
                yield MultituneError(
                    f"The weight of '{task}' has no effect with the aggregation {step.training.aggregation} of "
                    f"the step '{name}'.",
                    document.where(("tasks", task, "weight")),
                    "Take it out, or use a task mean.",
                )
    if step.tasks != "each":
        yield from _caught(partial(check_names, step.mixture, named), document, (*key, "mixture"))
    yield from _check_adaptation(step, recipe, document, (*key, "adapt"))
    yield from check_soft_prompt(name, step, recipe, document, named)
    for tracker in step.training.report_to:
        if find_spec(tracker) is None:
            yield MultituneError(
                f"The package {tracker} is not installed.",
                document.where((*key, "training", "report_to")),
                f"pip install {tracker}, or take it out; the JSON-lines log is always written.",
            )


def _check_weights(
    step: TrainStep, named: tuple[str, ...], recipe: Recipe, document: Document, key: KeyPath
) -> Iterator[MultituneError]:
    """Check that something is left to learn: the weights of a step's own win over those of the tasks."""
    weights = {name: recipe.tasks[name].weight for name in named if name in recipe.tasks}
    weights |= {name: weight for name, weight in step.training.task_weights.items() if name in weights}
    idle = [name for name, weight in weights.items() if weight == 0]
    if idle and (step.tasks == "each" or len(idle) == len(weights)):
        rest = "each task is trained alone" if step.tasks == "each" else "nothing else is trained"
        yield MultituneError(
            f"The weight of {', '.join(idle)} is 0, and {rest} here.",
            document.where((*key, "task_weights")),
            "Give a positive weight, or leave the task out of the step.",
        )


def _check_earlier(
    step: TrainStep, named: tuple[str, ...], document: Document, key: KeyPath
) -> Iterator[MultituneError]:
    """Check the memories of GEM: tasks of this very step, and a new one beside them."""
    if not isinstance(step.training.balancer, GemConfig):
        return
    earlier = step.training.balancer.earlier
    for task in earlier:
        if task not in named:
            yield MultituneError(
                f"The earlier task '{task}' is not in this step.{nearest(task, named)}",
                document.where(key),
                "Put it among the step's tasks, with mixture: {policy: replay, earlier: [...]}.",
            )
    if set(named) <= set(earlier) or step.tasks == "each":
        yield MultituneError(
            "GEM needs a new task beside the earlier ones.", document.where(key), "Leave the new tasks out of earlier."
        )


def _check_validation(
    step: TrainStep, named: tuple[str, ...], recipe: Recipe, document: Document, key: KeyPath
) -> Iterator[MultituneError]:
    training = step.training
    lacking = [name for name in named if name in recipe.tasks and recipe.tasks[name].validation is None]
    if not training.uses_validation or not lacking:
        return
    if training.eval_steps is not None:
        what, last = "eval_steps evaluates", "eval_steps"
    elif step.tasks == "each":
        return  # a task alone is not balanced
    else:
        assert training.balancer is not None
        what, last = f"the balancer {training.balancer.method} watches", "balancer"
    yield MultituneError(
        f"{what[0].upper()}{what[1:]} validation rows, and there are none for {', '.join(lacking)}.",
        document.where((*key, last)),
        "Give every task of the step a validation source, for example validation: {fraction: 0.05}.",
    )


def _check_adaptation(step: TrainStep, recipe: Recipe, document: Document, key: KeyPath) -> Iterator[MultituneError]:
    own_weights = (*WITHOUT_ADAPTER, "delta_lora")
    quantised = recipe.model is not None and recipe.model.quantize is not None
    if quantised and step.model == BASE and step.adapt.method in own_weights:
        yield MultituneError(
            "Quantised weights cannot train.",
            document.where(key),
            "Choose an adapter (adapt: lora), or remove model.quantize.",
        )
    if step.adapt.method == "delta_lora" and step.export != "merged":
        yield MultituneError(
            "Delta-LoRA moves the weights themselves, which an adapter alone does not hold.",
            document.where(key),
            "Set export: merged.",
        )
    trained = METHODS.get(recipe.adapter_of(step).method)
    if step.export == "merged" and trained is not None and not trained.merges:
        yield MultituneError(
            f"An adapter of type {recipe.adapter_of(step).method} cannot be added into the weights.",
            document.where((*key[:-1], "export")),
            "Set export: adapter, or choose a method that merges: see multitune methods.",
        )
    half, balancer = step.adapt.half, step.training.balancer
    if half is not None and half.resample == "epoch" and balancer is not None and balancer.needs_gradients:
        yield MultituneError(
            f"Another half at every epoch cannot train with {balancer.method}, which fixes what trains at the start.",
            document.where((*key, "resample")),
            "Take it out: every training of a chain of steps draws anew anyway.",
        )
    if step.export == "delta":
        yield from _check_delta(step, document, (*key[:-1], "export"))
    if step.training.gradient_checkpointing and step.adapt.method in CACHED_PREFIX:
        yield MultituneError(
            f"The method {step.adapt.method} gives the layers a cache, which gradient checkpointing does not allow.",
            document.where((*key[:-1], "training", "gradient_checkpointing")),
            "Take it out, or choose prompt_tuning or lora.",
        )


def _check_delta(step: TrainStep, document: Document, key: KeyPath) -> Iterator[MultituneError]:
    """Check that what a step changes is told by its one half, beside a base that stays."""
    half = step.adapt.half
    if half is None or half.resample == "epoch":
        how = "another half at every epoch changes everything" if half else f"'{step.adapt.method}' freezes no half"
        yield MultituneError(
            f"The trained half alone cannot be saved: {how}.",
            document.where(key),
            "Set adapt: half with resample: run, or export: merged.",
        )
    if step.model != BASE:
        yield MultituneError(
            f"The trained half alone needs a base that stays, and '{step.model}' is trained in this recipe.",
            document.where(key),
            "Set export: merged.",
        )


def _check_score(name: str, step: ScoreStep, recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    key: KeyPath = ("steps", name)
    named = step.tasks if isinstance(step.tasks, tuple) else tuple(recipe.tasks)
    yield from _check_task_names(named, tuple(recipe.tasks), recipe, document, (*key, "tasks"))
    tasks = [recipe.tasks[task] for task in named if task in recipe.tasks]
    for config in list(step.settings.values())[-1:]:  # a curve's settings differ in the number of shots alone
        yield from check_shots(config, named, recipe, document, key)
    if tasks and not any(scored_split(task, step.split) for task in tasks):
        yield MultituneError(
            f"None of the tasks of '{name}' has {step.split} rows.",
            document.where((*key, "split")),
            "Give one of them a source, or score another split.",
        )


def _check_task_names(
    named: tuple[str, ...], known: tuple[str, ...], recipe: Recipe, document: Document, key: KeyPath
) -> Iterator[MultituneError]:
    for place, task in enumerate(named):
        if task not in known:
            held_out = task in recipe.tasks
            what = (
                f"The task '{task}' is held out." if held_out else f"There is no task '{task}'.{nearest(task, known)}"
            )
            yield MultituneError(what, document.where((*key, place)), f"Use some of: {', '.join(known)}.")
        elif task in named[:place]:
            yield MultituneError(f"The task '{task}' is named twice.", document.where((*key, place)), "Name it once.")


def _caught(check: Callable[[], Any], document: Document, key: KeyPath) -> Iterator[MultituneError]:
    """Run a check of another room and yield its error with this file's line."""
    try:
        check()
    except MultituneError as error:
        yield MultituneError(error.what, document.where(key), error.mend)
