"""Merge steps: which folders are merged, what a merged encoder carries along, and the search among candidates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.recipes.graph import MergeNode
from multitune.recipes.learned_merge import LEARNED_FILE, merge_by_rows
from multitune.recipes.merge_learning import looks_at_rows
from multitune.recipes.merge_search import SEARCH_FILE, Tried, best_of, candidates, search
from multitune.recipes.run_folder import remove, write_whole
from multitune.recipes.schema import BASE, MergeStep, Recipe
from multitune.weights.config import MergeConfig
from multitune.weights.renaming import renamed

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.scoring.score import TaskScore
    from multitune.tasks.task import Task
    from multitune.weights.merging import MergeReport

logger = logging.getLogger("multitune.recipes")

WEIGHTS_AND_WORDS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]


def merge_models(
    node: MergeNode, recipe: Recipe, tasks: list[Task], place: Path, models: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Merge a node's models into ``place/model`` and return the facts of its artifact.

    With a search, every candidate is compared on the validation rows of ``tasks`` first (``place/search.json``), and
    the best is what is merged. A method that looks at rows itself leaves ``place/coefficients.json``.

    Args:
        node: the node.
        recipe: for the base and the folder of the data.
        tasks: resolved, that choose among candidates or that the method looks at.
        place: folder of the node.
        models: folder of every model that is base or a node; None for the recipe's own.
    """
    step = node.step
    config = located(step, recipe, models)
    facts: dict[str, Any] = {}
    if step.search is not None:
        tried = _searched(step, config, recipe, tasks, place)
        best = best_of(tried)
        logger.info("%s: the best of %d candidates on validation rows: %s", node.name, len(tried), best.candidate.name)
        write_whole(place / SEARCH_FILE, json.dumps(told_search(tried, best), indent=2) + "\n")
        config = best.candidate.config
        facts["chosen"] = dict(best.candidate.values)
    remove(place / "model")
    named = [each.model for each in step.models] or [each.model for part in step.slices for each in part.sources]
    facts |= {"name": node.name, "method": config.method, "base": step.base, "models": named}
    if looks_at_rows(step):
        measured, told = merge_by_rows(config, named, tasks, recipe, place / "model")
        write_whole(place / LEARNED_FILE, json.dumps(told, indent=1) + "\n")
        return facts | measured
    report = merge_with_heads(config, place / "model", recipe.base, recipe.tasks)
    return facts | {
        "seconds": round(report.seconds, 2),
        "tensors": report.tensors,
        "bytes_written": report.bytes_written,
        "left_out": report.left_out,
        "lines_alpha": report.lines_alpha,
    }


def located(step: MergeStep, recipe: Recipe, models: Mapping[str, Path | None]) -> MergeConfig:
    """Return a step's merge with a folder for every name."""

    def folder_of(name: str) -> str:
        saved = models.get(name)
        if saved is not None:
            return str(saved)
        return str(local_folder(recipe.base if name == BASE else ModelConfig(name=name)))

    return renamed(MergeConfig(**step.model_dump(include=set(MergeConfig.model_fields))), folder_of)


def local_folder(model: ModelConfig) -> Path:
    """Return the folder of a model; one of the hub is downloaded, or found in the cache.

    Raises:
        MultituneError: it is neither here nor can be had.
    """
    from multitune.models.location import resolve
    from multitune.models.pretrained import hub_is_reachable

    location = Path(resolve(model))
    if location.is_dir():
        return location
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(location),
                revision=model.revision,
                allow_patterns=WEIGHTS_AND_WORDS,
                local_files_only=not hub_is_reachable(),
            )
        )
    except (OSError, ValueError) as error:
        raise MultituneError(
            f"The model '{model.name}' is not on this machine and cannot be downloaded.",
            f"model {model.name}",
            "Give the path of a model folder, or download it once where there is a network.",
        ) from error


def merge_with_heads(
    config: MergeConfig,
    out: Path,
    base: ModelConfig | None = None,
    known: Mapping[str, Task] | None = None,
    progress: Any = None,
) -> MergeReport:
    """Merge folders, and put the heads of all encoders among them beside the result.

    Args:
        config: with folders for names.
        out: of the result.
        base: what the description names as its origin; None: the base's folder.
        known: tasks by name, for heads whose models do not say what they are of.
        progress: as `multitune.weights.merging.merge` takes it.
    """
    from multitune.models.gathered_heads import gather_heads
    from multitune.models.loading import describe, description_of
    from multitune.tasks.task import Task
    from multitune.weights.merging import merge

    report = merge(config, out, progress=progress)
    folders = [each.model for each in config.models] or [each.model for part in config.slices for each in part.sources]
    paths = [Path(each) for each in dict.fromkeys(folders)]
    gathered = gather_heads(paths, out)
    descriptions = [told for path in paths if (told := description_of(path))]
    if not descriptions:
        return report
    tasks = {one["name"]: Task.model_validate(one) for told in descriptions for one in told["tasks"]}
    origin = base or ModelConfig(name=config.base or folders[0])
    rounds = max(told["rounds"] for told in descriptions)
    found = [tasks.get(name) or (known or {})[name] for name in gathered]
    describe(out, descriptions[0]["form"], origin, rounds, found)
    return report


def _searched(step: MergeStep, config: MergeConfig, recipe: Recipe, tasks: list[Task], place: Path) -> list[Tried]:
    from multitune.scoring.score import ScoreConfig

    assert step.search is not None
    score = ScoreConfig(split="validation", rows=step.search.rows)
    return search_merges(config, step.search.over, tasks, recipe.folder, score, place)


def search_merges(
    config: MergeConfig, over: Mapping[str, Any], tasks: list[Task], data: Path, score: Any, place: Path
) -> list[Tried]:
    """Return how every candidate of a merge does on the tasks' validation rows.

    Args:
        config: the merge, with folders for names.
        over: values by key, see `MergeSearch`.
        tasks: resolved.
        data: folder that the tasks' paths start from.
        score: how rows are scored.
        place: where candidates may lie for a while.
    """
    from multitune.models.heads import MultiTaskEncoder
    from multitune.models.loading import load_saved
    from multitune.scoring.score import score_tasks

    def make(candidate: MergeConfig, out: Path) -> float | None:
        return merge_with_heads(candidate, out, known={task.name: task for task in tasks}).lines_alpha

    def evaluate(backbone: Backbone) -> list[TaskScore]:
        answered = tasks
        if isinstance(backbone.model, MultiTaskEncoder):
            heads = {head.task for head in backbone.model.heads}
            answered = [task for task in tasks if task.name in heads]
        return score_tasks(backbone, answered, data, score, seed=0)

    found = candidates(config, over)
    return search(Path(config.base) if config.base else None, found, make, load_saved, evaluate, place)


def told_search(tried: list[Tried], best: Tried) -> dict[str, Any]:
    """Return what is kept of a search: every candidate with its scores, and which was the best."""
    return {
        "best": best.candidate.name,
        "candidates": [
            {
                "name": each.candidate.name,
                "values": dict(each.candidate.values),
                "quality": each.quality,
                "rows": each.rows,
            }
            for each in tried
        ],
    }
