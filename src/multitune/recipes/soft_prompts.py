"""Train steps that put a prompt before their inputs: whose it is, what may stand in its way, and its vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.adaptation.methods import CONTINUE, METHODS
from multitune.errors import MultituneError, nearest
from multitune.recipes.reading import Document, KeyPath
from multitune.recipes.schema import Recipe, TrainStep

if TYPE_CHECKING:
    from torch import Tensor

    from multitune.models.loading import Backbone
    from multitune.recipes.graph import TrainNode

SOFT_PROMPTS = ("prompt_tuning", "p_tuning")
"""Methods whose adapters are vectors before the input and nothing else."""


def prompt_nodes(step: TrainStep, tasks: Sequence[str], recipe: Recipe) -> dict[str, str]:
    """Return by task the node whose prompt stands before its inputs; {} where the step names no step."""
    if step.soft_prompt is None or step.soft_prompt.step is None:
        return {}
    name = step.soft_prompt.step
    made = recipe.steps.get(name)
    each = isinstance(made, TrainStep) and made.tasks == "each"
    return {task: f"{name}.{task}" if each else name for task in tasks}


def prompt_numbers(node: TrainNode, recipe: Recipe, width: int) -> int | None:
    """Return how many numbers of the prompts before a node's inputs train; None where only their step could tell."""
    asked = node.step.soft_prompt
    if asked is None or not asked.trains:
        return 0
    length = asked.vectors
    if asked.step is not None:
        made: Any = recipe.steps[asked.step.partition(".")[0]]
        left = recipe.adapter_of(made)
        length = left.resolved.get("num_virtual_tokens") if left.budget is None else None
    return None if length is None else len(node.tasks) * length * width


def attach_for(node: TrainNode, backbone: Backbone, models: Mapping[str, Path | None], seed: int) -> None:
    """Put the prompts that a node asks for before the inputs of an adapted model.

    Args:
        node: of the recipe.
        backbone: what trains; changed.
        models: folder of every model that the node reads.
        seed: of fresh vectors.

    Raises:
        MultituneError: a prompt is damaged, of another base, or the model cannot have one.
    """
    asked = node.step.soft_prompt
    if asked is None:
        return
    from multitune.models.task_prompts import attach_prompts, fresh_prompts, read_prompt

    if asked.vectors is not None:
        prompts = fresh_prompts(backbone.model, node.tasks, asked.vectors, asked.init, seed)
    else:
        prompts = {task: read_prompt(_folder(models[name])) for task, name in node.prompts.items()}
    attach_prompts(backbone.model, prompts, trains=asked.trains)


def attach_all(backbone: Backbone, earlier: Mapping[str, Tensor]) -> None:
    """Let a trained model keep the prompts of earlier stages beside its own, which win."""
    from multitune.models.task_prompts import attach_prompts, detach_prompts

    if earlier:
        attach_prompts(backbone.model, {**earlier, **detach_prompts(backbone.model)})


def _folder(model: Path | None) -> Path:
    assert model is not None  # a step's, which always has one
    return model


# -- checks ------------------------------------------------------------------------------------------------------------


def check_soft_prompt(
    name: str, step: TrainStep, recipe: Recipe, document: Document, trained: Sequence[str]
) -> Iterator[MultituneError]:
    """Check what a train step says of a prompt before its inputs.

    Args:
        name, step: the step.
        recipe, document: the recipe and its lines.
        trained: names of the tasks that it trains.
    """
    asked = step.soft_prompt
    if asked is None:
        return
    key: KeyPath = ("steps", name)
    where = document.where((*key, "soft_prompt"))
    if step.training.pack == "always":
        yield MultituneError(
            "A prompt stands before each row, and not before each example in it: such rows are not packed.",
            document.where((*key, "training", "pack")),
            "Set training.pack to auto or never.",
        )
    method = recipe.adapter_of(step).method
    if method == CONTINUE or METHODS[method].family == "prompt" or METHODS[method].needs_task:
        yield MultituneError(
            f"The method '{method}' cannot train behind a prompt of another step.",
            document.where((*key, "adapt")),
            "Choose full, or a method in the layers such as lora.",
        )
    if recipe.model is not None and recipe.model.form == "encoder":
        yield MultituneError(
            "An encoder has one head per task, and nothing that a prompt could keep.",
            where,
            "Take soft_prompt out, or take a causal or encoder-decoder model.",
        )
    if asked.step is not None:
        yield from _check_origin(asked.step, step, recipe, where, trained)


def _model_below(step: TrainStep, recipe: Recipe) -> str:
    """Return the model that a prompt stands before: below the steps that went on with its adapter."""
    for _ in recipe.steps:  # steps that wait for one another are told elsewhere
        before = recipe.steps.get(step.model.partition(".")[0])
        if step.adapt.method != CONTINUE or not isinstance(before, TrainStep):
            break
        step = before
    return step.model


def _check_origin(
    origin: str, step: TrainStep, recipe: Recipe, where: str, trained: Sequence[str]
) -> Iterator[MultituneError]:
    """Check the step that leaves the prompt: a prompt alone, on the same model, of the tasks that are trained."""
    stem, _, task = origin.partition(".")
    made: Any = recipe.steps.get(stem)
    each = isinstance(made, TrainStep) and made.tasks == "each"
    if not isinstance(made, TrainStep) or (bool(task) and not (each and task in recipe.training_tasks)):
        steps = [other for other, one in recipe.train_steps() if one is not step]
        yield MultituneError(
            f"There is no train step '{origin}' whose prompt could stand before the inputs.{nearest(origin, steps)}",
            where,
            f"Name a step with adapt: {' or '.join(SOFT_PROMPTS)}.",
        )
        return
    method = recipe.adapter_of(made).method
    if method not in SOFT_PROMPTS or made.export != "adapter":
        left = f"an adapter of type {method}" if made.export == "adapter" else f"what export: {made.export} writes"
        yield MultituneError(
            f"The step '{stem}' leaves {left}, which is no soft prompt.",
            where,
            f"Train '{stem}' with adapt: {' or '.join(SOFT_PROMPTS)}.",
        )
        return
    if made.soft_prompt is not None:
        yield MultituneError(
            f"The prompt of '{stem}' was trained behind another prompt.", where, f"Take soft_prompt out of '{stem}'."
        )
    base = _model_below(made, recipe)
    if base != step.model:
        yield MultituneError(
            f"The prompt of '{stem}' was trained on '{base}', and this step trains '{step.model}'.",
            where,
            f"Let both start from one model, for example model: {step.model} in '{stem}'.",
        )
    if each and not task:
        known = recipe.training_tasks
    else:
        known = (task,) if task else recipe.training_tasks if made.tasks == "all" else tuple(made.tasks)
    if missing := [one for one in trained if one not in known]:
        yield MultituneError(
            f"The prompt of '{origin}' was not trained on {', '.join(missing)}, which this step trains behind it.",
            where,
            f"Train {', '.join(missing)} in '{stem}' too, or leave {'it' if len(missing) == 1 else 'them'} out here.",
        )
