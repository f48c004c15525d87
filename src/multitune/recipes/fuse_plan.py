"""What the fuse steps of a recipe will hold and compute, before the models that they fuse exist."""

from __future__ import annotations

from dataclasses import dataclass

from multitune.models.config import ModelConfig
from multitune.recipes.graph import FuseNode, build
from multitune.recipes.schema import BASE, MergeStep, Recipe, TrainStep


@dataclass(frozen=True)
class FuseNodePlan:
    """What one fuse node will do.

    Attributes:
        name, large, experts: the node, its large model, and how many experts lead it.
        alpha: "dynamic (grid)", or the fixed coefficients.
        bytes: of all weights in memory; adapters over the small base share one copy of it and count nothing.
        parameters: that a token passes, all models together.
        large_parameters: those of the large model alone.
    """

    name: str
    large: str
    experts: int
    alpha: str
    bytes: int
    parameters: int
    large_parameters: int


def plan_fusions(recipe: Recipe) -> list[FuseNodePlan]:
    """Return what a recipe's fusions will take; nothing for one whose model's size cannot be known yet."""
    return [one for node in build(recipe) if isinstance(node, FuseNode) and (one := _plan(node, recipe)) is not None]


def _plan(node: FuseNode, recipe: Recipe) -> FuseNodePlan | None:
    from multitune.errors import MultituneError
    from multitune.models.loading import model_facts

    step = node.step
    assert step.small is not None  # checked with the recipe
    try:
        large, small, *experts = (model_facts(_origin(name, recipe)) for name in step.sources)
    except MultituneError:
        return None
    whole = [one for one, name in zip(experts, step.experts, strict=True) if not _shares_base(name, step.small, recipe)]
    fixed = step.fixed(len(experts))
    return FuseNodePlan(
        name=node.name,
        large=step.model,
        experts=len(experts),
        alpha=f"dynamic ({step.search})" if fixed is None else ", ".join(f"{alpha:g}" for alpha in fixed),
        bytes=sum(one.bytes for one in (large, small, *whole)),
        parameters=sum(one.parameters for one in (large, small, *experts)),
        large_parameters=large.parameters,
    )


def _origin(name: str, recipe: Recipe) -> ModelConfig:
    """Return a model of the size of the named one: where a step has made it, that of what the step began with."""
    step = recipe.steps.get(name.partition(".")[0])
    if isinstance(step, TrainStep):
        return _origin(step.model, recipe)
    if isinstance(step, MergeStep):
        return _origin(step.base or step.sources[0], recipe)
    return recipe.base if name == BASE else ModelConfig(name=name)


def _shares_base(expert: str, small: str, recipe: Recipe) -> bool:
    """Whether an expert is an adapter that a step trains over the small base."""
    step = recipe.steps.get(expert.partition(".")[0])
    if not isinstance(step, TrainStep):
        return False
    return step.model == small and step.export == "adapter" and step.adapt.method == "lora"
