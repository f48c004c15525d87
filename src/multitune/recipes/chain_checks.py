"""What a train step says of the step whose model it trains further."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multitune.adaptation.methods import CONTINUE, NOT_CONTINUED, WITHOUT_ADAPTER
from multitune.errors import MultituneError
from multitune.recipes.reading import Document
from multitune.recipes.schema import Recipe, TrainStep


def check_chains(recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    """Check that what a step leaves can be trained further where another step does so."""
    for name, step in recipe.train_steps():
        start = recipe.steps.get(step.model.partition(".")[0])
        yield from _check_annealing(name, step, recipe, document)
        if step.adapt.method == CONTINUE:
            yield from _check_continued(name, step, start, recipe, document)
            continue
        if not isinstance(start, TrainStep):
            continue
        adapter = start.adapt.method not in WITHOUT_ADAPTER and start.export == "adapter"
        if adapter or start.export == "delta":
            left = "an adapter" if adapter else "what it trained alone"
            yield MultituneError(
                f"The step '{step.model}' leaves {left}, which cannot be trained further as it is.",
                document.where(("steps", name, "model")),
                f"Set steps.{step.model.partition('.')[0]}.export to merged"
                + (", or train the adapter itself further (adapt: continue)." if adapter else "."),
            )


def _check_annealing(name: str, step: TrainStep, recipe: Recipe, document: Document) -> Iterator[MultituneError]:
    """Check that there are mixtures to be annealed."""
    adapter = recipe.adapter_of(step)
    if step.training.routing_annealing_steps and adapter.method != CONTINUE:
        mixes = adapter.method == "mhr" and adapter.options.get("router", "skills") == "skills"
        if mixes and adapter.options.get("trains") != "average":
            return
        yield MultituneError(
            f"The step '{name}' trains no mixtures of modules that could be annealed.",
            document.where(("steps", name, "training", "routing_annealing_steps")),
            "Set adapt: mhr (with its router: skills), or remove routing_annealing_steps.",
        )


def _check_continued(
    name: str, step: TrainStep, start: Any, recipe: Recipe, document: Document
) -> Iterator[MultituneError]:
    """Check that the model of a step that goes on with an adapter has one that can."""
    where = document.where(("steps", name, "adapt"))
    if not isinstance(start, TrainStep) or start.adapt.method in WITHOUT_ADAPTER or start.export != "adapter":
        yield MultituneError(
            f"The model '{step.model}' has no adapter that could be trained further.",
            where,
            "Let model name a train step that leaves an adapter (export: adapter), or name a method.",
        )
        return
    left = recipe.adapter_of(start)
    if left.method in NOT_CONTINUED:
        yield MultituneError(
            f"An adapter of type {left.method} cannot be trained further: {NOT_CONTINUED[left.method]}.",
            where,
            "Train it anew, with the rows of both trainings.",
        )
    if left.method not in ("mhr", CONTINUE) and "trains" in step.adapt.options:
        yield MultituneError(
            f"An adapter of type {left.method} has no routing that could train alone.",
            where,
            "Remove trains; it is of adapters that mix modules by task (mhr).",
        )
