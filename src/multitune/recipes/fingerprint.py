"""What a node's result depends on, as one digest: equal digests mean that the work is done already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multitune.models.config import ModelConfig
from multitune.recipes.graph import EstimatorNode, FuseNode, MergeNode, ScoreNode, TrainNode
from multitune.recipes.schema import BASE, Recipe
from multitune.scoring.in_context.demonstrations import demonstration_split
from multitune.scoring.score import ScoreConfig
from multitune.tasks.sources import source_fingerprint
from multitune.tasks.task import Split, Task

TRAIN_VERSION = 3
SCORE_VERSION = 4
FUSE_VERSION = 1
MERGE_VERSION = 1
ESTIMATOR_VERSION = 1
"""Raised when the same settings would give other weights or scores, so that old results are not taken for new ones."""

_ONLY_SCORED = {
    "test",
    "validation",
    "metrics",
    "tags",
    "held_out",
    "max_new_tokens",
    "stop",
    "program",
    "cases",
    "references",
    "continuation",
    "prompt_names",
}
_ONLY_TRAINED = {
    "train",
    "validation",
    "test",
    "weight",
    "tags",
    "held_out",
    "program",
    "cases",
    "train_shots",
}  # the scored rows are digested themselves
_ONLY_LOGGED = {"logging_steps", "save_steps", "save_total_limit", "report_to"}

_NOT_TRAINED: dict[str, Any] = {"tasks": True, "measure": True, "training": _ONLY_LOGGED}
"""Keys of a train step that do not change its weights; its tasks are digested on their own."""


def train_fingerprint(node: TrainNode, recipe: Recipe, models: Mapping[str, str]) -> str:
    """Digest a train node: its settings, its tasks' training rows, the seed and the model it starts from.

    Args:
        node: the node.
        recipe: for tasks and seed.
        models: fingerprints of the models that it reads, by name.
    """
    tasks = [recipe.tasks[name] for name in node.tasks]
    prompts = {"prompts": {task: models[name] for task, name in node.prompts.items()}} if node.prompts else {}
    watched = {"validation": [_rows(task, "validation", recipe.folder) for task in tasks]}
    return digest(
        {
            **(watched if node.step.training.uses_validation else {}),
            **prompts,
            "version": TRAIN_VERSION,
            "step": node.step.model_dump(mode="json", exclude=_NOT_TRAINED),
            "tasks": [task.model_dump(mode="json", exclude={*_ONLY_SCORED, "train"}) for task in tasks],
            "rows": [_rows(task, "train", recipe.folder) for task in tasks],
            "cut": [_fractions(task) for task in tasks],
            "seed": recipe.seed,
            "model": models[node.model],
        }
    )


def estimator_fingerprint(node: EstimatorNode, recipe: Recipe) -> str:
    """Digest an estimator node: its settings, its tasks' training rows, and validation rows that it stops early by."""
    tasks = [recipe.tasks[name] for name in node.tasks]
    watched = {"validation": [_rows(task, "validation", recipe.folder) for task in tasks]}
    return digest(
        {
            **(watched if node.step.estimator_options.get("early_stopping") is True else {}),
            "version": ESTIMATOR_VERSION,
            "step": node.step.model_dump(mode="json", exclude={"tasks"}),
            "tasks": [task.model_dump(mode="json", exclude={*_ONLY_SCORED, "train"}) for task in tasks],
            "others": sorted({target for task in recipe.tasks.values() for target in task.target}),
            "rows": [_rows(task, "train", recipe.folder) for task in tasks],
            "cut": [_fractions(task) for task in tasks],
            "seed": recipe.seed,
        }
    )


def score_fingerprint(
    node: ScoreNode, recipe: Recipe, tasks: Sequence[Task], model: str, splits: Mapping[str, Split | None]
) -> str:
    """Digest a score node: its settings, the scored rows and the model.

    The seed counts only where it makes the model: an encoder has random heads before any training.

    Args:
        node: the node.
        recipe: for folder, model and seed.
        tasks: its tasks, resolved: what is inferred from training rows decides the scores too.
        model: fingerprint of the model that it scores.
        splits: the split on which every task is scored.
    """
    return digest(
        {
            "version": SCORE_VERSION,
            "score": node.config.model_dump(mode="json"),
            "tasks": [task.model_dump(mode="json", exclude=_ONLY_TRAINED) for task in tasks],
            "rows": [(split, _rows(task, split, recipe.folder)) for task in tasks if (split := splits[task.name])],
            "demonstrations": [_demonstrations(task, node.config, recipe.folder) for task in tasks],
            "cut": [_fractions(task) for task in tasks],
            "seed": recipe.seed if node.model == BASE and _has_random_heads(recipe) else None,
            "model": model,
        }
    )


def fuse_fingerprint(node: FuseNode, models: Mapping[str, str]) -> str:
    """Digest a fuse node: its settings and every model that it names, in their order.

    Args:
        node: the node.
        models: fingerprints of base and nodes, by name.
    """
    sources = [models.get(name) or location_fingerprint(ModelConfig(name=name)) for name in node.step.sources]
    settings = node.step.model_dump(mode="json", exclude={"model", "small", "experts"})
    return digest({"version": FUSE_VERSION, "step": settings, "sources": sources})


def merge_fingerprint(node: MergeNode, recipe: Recipe, tasks: Sequence[Task], models: Mapping[str, str]) -> str:
    """Digest a merge node: its settings, every model that it names, and the rows on which candidates are compared.

    Args:
        node: the node.
        recipe: for the folder of the data.
        tasks: whose validation rows choose among candidates, resolved; none without a search.
        models: fingerprints of base and nodes, by name.
    """
    sources = {name: models.get(name) or location_fingerprint(ModelConfig(name=name)) for name in node.step.sources}
    return digest(
        {
            "version": MERGE_VERSION,
            "step": node.step.model_dump(mode="json", exclude_defaults=True),
            "sources": sources,
            "tasks": [task.model_dump(mode="json", exclude=_ONLY_TRAINED) for task in tasks],
            "rows": [_rows(task, "validation", recipe.folder) for task in tasks],
            "cut": [_fractions(task) for task in tasks],
        }
    )


def _has_random_heads(recipe: Recipe) -> bool:
    from multitune.models.pretrained import model_form

    return recipe.model is not None and model_form(recipe.base) == "encoder"


def model_fingerprint(recipe: Recipe) -> str:
    """Digest the recipe's own model."""
    return location_fingerprint(recipe.base)


def baseline_fingerprint(recipe: Recipe) -> str:
    """Digest what a recipe without a model is held against: the answers of its tasks' training rows."""
    return digest({name: _rows(task, "train", recipe.folder) for name, task in recipe.tasks.items()})


def location_fingerprint(model: ModelConfig) -> str:
    """Digest a model: every byte of a local folder, or hub id and revision."""
    from multitune.models.location import resolve

    location = Path(resolve(model))
    settings = model.model_dump(mode="json", exclude={"name"})
    if not location.is_dir():
        return digest({"settings": settings, "hub": str(location), "revision": model.revision})
    known = _KnownDigests(cache_folder() / "digests.json")
    files = {path.name: known.of(path) for path in sorted(location.iterdir()) if path.is_file()}
    known.save()
    return digest({"settings": settings, "files": files})


def cache_folder() -> Path:
    """Where tokens and digests are kept between runs: ``$XDG_CACHE_HOME/multitune`` or ``~/.cache/multitune``."""
    import os

    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multitune"


def digest(value: Any) -> str:
    """Return a digest of a JSON-like value that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _rows(task: Task, split: Split, folder: Path) -> str:
    """Digest the rows of a split; where they are a share of train, those of train and how many are read."""
    source = task.source(split)
    if source is None:
        return ""
    if source.fraction is not None and task.train is not None:
        return f"{source_fingerprint(task.train, folder)}/{source.rows}"
    return source_fingerprint(source, folder)


def _demonstrations(task: Task, config: ScoreConfig, folder: Path) -> str:
    return _rows(task, demonstration_split(task, config.demonstrations), folder) if config.shots else ""


def _fractions(task: Task) -> list[float | None]:
    return [source.fraction if source is not None else None for source in (task.validation, task.test)]


class _KnownDigests:
    """Digests of large files by path, size and time of change, so that 14 GB are not read at every start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.known: dict[str, str] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.known = {}

    def of(self, file: Path) -> str:
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self.known:
            with file.open("rb") as stream:
                self.known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self.known[key]

    def save(self) -> None:
        """Keep what is known; a cache that cannot be written only costs time."""
        import contextlib

        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".partial")
            temporary.write_text(json.dumps(self.known))
            temporary.replace(self.path)
