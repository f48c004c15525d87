"""Fuse steps: a file that names the models, and scoring with every coefficient kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.decoding.fusion_config import FusionConfig
from multitune.decoding.fusion_file import FUSION_FILE, FusionFile
from multitune.models.config import ModelConfig
from multitune.recipes.graph import FuseNode
from multitune.recipes.run_folder import write_whole
from multitune.recipes.schema import BASE, Recipe

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.scoring.score import ScoreConfig, TaskScore
    from multitune.tasks.task import Task


def is_fused(model: Path) -> bool:
    """Tell whether the folder of a node's model, or a file, is a fusion."""
    return (model / FUSION_FILE).is_file() or (model.is_file() and model.suffix == ".json")


def load_fused(model: Path) -> Backbone:
    """Return the model of a folder or file of which `is_fused` is true."""
    from multitune.decoding.fusion_file import load_fusion

    return load_fusion(model if model.is_file() else model / FUSION_FILE)


def write_fusion_file(
    node: FuseNode, recipe: Recipe, folder: Path, models: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Write the file that names the models of a fuse node, and return the facts of its artifact.

    Models of the same run are named relative to the file, so that a run's folder can be moved.

    Args:
        node: the node.
        recipe: for the base.
        folder: of the file.
        models: folder of every model that is base or a node; None for the recipe's own.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def located(name: str) -> ModelConfig:
        saved = models.get(name)
        if saved is not None:
            return ModelConfig(name=os.path.relpath(saved.resolve(), folder.resolve()))
        return recipe.base if name == BASE else ModelConfig(name=name)

    step = node.step
    assert step.small is not None  # checked with the recipe
    written = FusionFile(
        large=located(step.model),
        small=located(step.small),
        experts={name: located(name) for name in step.experts},
        fusion=FusionConfig.model_validate(step.model_dump(include=set(FusionConfig.model_fields))),
    )
    write_whole(folder / FUSION_FILE, written.model_dump_json(indent=2, exclude_defaults=True) + "\n")
    return {"name": node.name, "large": step.model, "small": step.small, "experts": list(step.experts)}


def score_fused(folder: Path) -> Callable[..., list[TaskScore]]:
    """Return a `score_tasks` that writes the coefficients of every task to ``folder/<task>.jsonl``."""

    def score(
        backbone: Backbone, tasks: Sequence[Task], base: Path, config: ScoreConfig, **options: Any
    ) -> list[TaskScore]:
        from multitune.decoding.fusion_trace import write_trace
        from multitune.scoring.score import score_tasks

        scores = []
        for task in tasks:
            backbone.model.trace = []
            scores += score_tasks(backbone, [task], base, config, **options)
            write_trace(folder / f"{task.name}.jsonl", backbone.model.trace, backbone.model.names, backbone.tokenizer)
        return scores

    return score
