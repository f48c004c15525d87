"""Does one node of a run: trains a model into a folder, or scores one."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.adaptation.methods import CONTINUE, METHODS
from multitune.errors import MultituneError
from multitune.mixing.policies import MixtureConfig, Proportional
from multitune.recipes import fingerprint
from multitune.recipes.cards import estimator_card, merge_card, model_card
from multitune.recipes.cost import cost_of, parameters_of
from multitune.recipes.fusing import is_fused, load_fused, score_fused, write_fusion_file
from multitune.recipes.graph import (
    EstimatorNode,
    FuseNode,
    MergeNode,
    Node,
    ScoreNode,
    TrainNode,
    refuse_rows_longer_than,
)
from multitune.recipes.merge_search import searched_tasks
from multitune.recipes.run_folder import disk_error, read_finished, remove, write_whole
from multitune.recipes.schema import BASE, Recipe
from multitune.recipes.soft_prompts import attach_all, attach_for
from multitune.recipes.tables import fit_baseline, fit_node, save_node, score_tables, that_it_answers
from multitune.tabular.task_model import is_table_model, load_table_model
from multitune.tabular.task_table import as_table_task
from multitune.tasks.task import Split, Task
from multitune.training.processes import first_of_machine_first, gather, is_main, rank, world_size

if TYPE_CHECKING:
    from torch import Tensor

    from multitune.mixing.tokens import TokenTable
    from multitune.models.loading import Backbone
    from multitune.recipes.tables import Baseline
    from multitune.tabular.task_model import TableModel

logger = logging.getLogger("multitune.recipes")

ScoringProgress = Callable[[str, int, int], None]

INTERVALS_SEED = 0


@dataclass
class Opened:
    """A recipe, and its tasks with layout, kind and choices known.

    Attributes:
        recipe: checked.
        resolved: what was read from the data so far, by the task as written; recipes of one sweep share it.
    """

    recipe: Recipe
    resolved: dict[str, Task] = field(default_factory=dict)

    def tasks(self, names: tuple[str, ...]) -> list[Task]:
        """Return tasks as their data settle them; each is read once."""
        from multitune.tasks.prompting import resolve

        found = []
        for name in names:
            task = self.recipe.tasks[name]
            written = task.model_dump_json()
            if written not in self.resolved:
                asked = task if self.recipe.model is not None else as_table_task(task)
                self.resolved[written] = resolve(asked, self.recipe.folder)
            found.append(self.resolved[written])
        return found


def is_finished(node: Node, place: Path, inputs: str) -> bool:
    """Return whether a node's folder holds its result of these inputs, whole.

    Args:
        node: the node.
        place: its folder.
        inputs: its fingerprint.
    """
    if isinstance(node, ScoreNode):
        return read_finished(place / "scores.json", inputs) is not None
    stands = read_finished(place / "artifact.json", inputs) is not None
    return stands and any(holds(place / "model") for holds in (is_fused, is_table_model, _is_whole))


def prepare(node: Node, place: Path, inputs: str) -> None:
    """Make a node's folder ready: what work on other inputs left is removed, checkpoints of these ones stay."""
    if isinstance(node, ScoreNode):
        return
    (place / "artifact.json").unlink(missing_ok=True)
    if not read_finished(place / "begun.json", inputs):
        # what an unfinished run of other settings left: its checkpoints would crowd out the new ones
        if left := sorted((place / "checkpoints").glob("checkpoint-*")):
            logger.warning(
                "%s: settings or data have changed since it stopped; it begins anew, its %d checkpoints are removed",
                node.name,
                len(left),
            )
        shutil.rmtree(place, ignore_errors=True)
        write_whole(place / "begun.json", json.dumps({"fingerprint": inputs}) + "\n")


def do(
    node: Node,
    opened: Opened,
    place: Path,
    models: Mapping[str, Path | None],
    inputs: str,
    progress: ScoringProgress | None = None,
) -> None:
    """Do a node and write its result; the file that says so comes last.

    Where a launcher has started several processes, all of them come here with the same node; the main one writes.

    Args:
        node: of the recipe.
        opened: the recipe.
        place: its folder, prepared.
        models: folder of every model that the node reads, by name; None for the recipe's own.
        inputs: its fingerprint.
        progress: called with (task, examples done, examples in all) while scoring.
    """
    if isinstance(node, FuseNode):
        if is_main():
            facts = write_fusion_file(node, opened.recipe, place / "model", models)
            write_whole(place / "artifact.json", json.dumps({"fingerprint": inputs, **facts}, indent=2) + "\n")
    elif isinstance(node, MergeNode):
        if is_main():
            facts = _merge(node, opened, place, models)
            write_whole(place / "artifact.json", json.dumps({"fingerprint": inputs, **facts}, indent=2) + "\n")
    elif isinstance(node, EstimatorNode):
        facts = _fit(node, opened, place)
        if is_main():
            write_whole(place / "artifact.json", json.dumps({"fingerprint": inputs, **facts}, indent=2) + "\n")
    elif isinstance(node, TrainNode):
        facts = _train(node, opened, place, models)
        if is_main():
            write_whole(place / "artifact.json", json.dumps({"fingerprint": inputs, **facts}, indent=2) + "\n")
            shutil.rmtree(place / "checkpoints", ignore_errors=True)  # the model is whole; they only take space
    else:
        rows = _score(node, opened, place, models[node.model], progress)
        if is_main():
            write_whole(place / "scores.json", json.dumps({"fingerprint": inputs, "rows": rows}) + "\n")


# -- merge -------------------------------------------------------------------------------------------------------------


def _merge(node: MergeNode, opened: Opened, place: Path, models: Mapping[str, Path | None]) -> dict[str, Any]:
    from multitune.recipes.merging import merge_models

    logger.info("%s: merging %d models by %s", node.name, len(node.step.sources) - 1, node.step.method)
    try:
        facts = merge_models(node, opened.recipe, opened.tasks(searched_tasks(node.step, opened.recipe)), place, models)
    except OSError as error:
        raise disk_error(error, place) from error
    write_whole(place / "model" / "README.md", merge_card(opened.recipe, node, place / "model", facts, []))
    return facts


# -- fit ---------------------------------------------------------------------------------------------------------------


def _fit(node: EstimatorNode, opened: Opened, place: Path) -> dict[str, Any]:
    """Fit an estimator in every process, as its network may be spread over them; the main one writes it."""
    model, facts = fit_node(node, opened.recipe, opened.tasks(node.tasks))
    if is_main():
        try:
            save_node(model, place / "model")
        except OSError as error:
            raise disk_error(error, place) from error
        write_whole(place / "model" / "README.md", estimator_card(opened.recipe, node, facts, []))
    return facts


# -- train -------------------------------------------------------------------------------------------------------------


def _train(node: TrainNode, opened: Opened, place: Path, models: Mapping[str, Path | None]) -> dict[str, Any]:
    from transformers import set_seed

    from multitune.adaptation.half import write_manifest
    from multitune.models.loading import save_backbone
    from multitune.models.positions import usable_positions
    from multitune.training.cost import reading_speeds
    from multitune.training.train import train, with_weights

    step, seed = node.step, opened.recipe.seed
    set_seed(seed)
    tasks = opened.tasks(node.tasks)
    backbone, earlier = _to_train(node, opened.recipe, models[node.model], tasks)
    parameters = parameters_of(backbone.model)
    refuse_rows_longer_than(usable_positions(backbone.model), node)
    tables = [_tokens(task, "train", backbone, node, opened.recipe.folder) for task in tasks]
    backbone = _adapted(node, backbone, place, models, seed)
    if backbone.half is not None and is_main():
        write_manifest(backbone.half, place)
    given = {name: weight for name, weight in step.training.task_weights.items() if name in node.tasks}
    weights = {task.name: task.weight for task in tasks} | given
    mixture = step.mixture if len(tasks) > 1 else Proportional()  # one task alone has no shares to speak of
    _say_shares(node, tables, mixture)
    balancer = step.training.balancer if len(tasks) > 1 else None  # one task alone has nothing to balance either
    config = step.training.model_copy(update={"task_weights": weights, "balancer": balancer})
    watched = tasks if config.uses_validation else []
    validation = [_tokens(task, "validation", backbone, node, opened.recipe.folder) for task in watched]
    try:
        result = train(backbone, tables, mixture, config, place, seed=seed, validation=validation, title=node.name)
        if is_main():
            if result.weights is not None:
                whole, _ = _to_train(node, opened.recipe, models[node.model], tasks)
                backbone = with_weights(_adapted(node, whole, place, models, seed), result.weights)
            attach_all(backbone, earlier)
            backbone.rounds += 1
            if backbone.form != "encoder":  # an encoder knows its tasks by its heads; any model can be asked by them
                backbone.tasks = tuple(tasks)
            save_backbone(backbone, place / "model", merged=step.export == "merged", delta=step.export == "delta")
            if backbone.half is not None:
                write_manifest(backbone.half, place / "model")
    except OSError as error:
        raise disk_error(error, place) from error
    cost: dict[str, Any] = {}
    if is_main():
        cost = cost_of(result, parameters, place / "model")
        if step.measure and result.weights is None:  # what was dealt out to many devices is not read by one
            merges = METHODS[opened.recipe.adapter_of(step).method].merges
            cost["tokens_per_second"] = reading_speeds(
                backbone, validation or tables, config.rows_per_forward, config.max_length, merges=merges
            )
    facts = {
        "name": node.name,
        "model": node.model,
        "tasks": list(node.tasks),
        "steps": result.steps,
        "seconds": round(result.seconds, 2),
        "trainable_parameters": result.trainable_parameters,
        "fill": result.fill,
        "rows": {table.task: len(table) for table in tables},
        "cost": cost,
    }
    if is_main():
        write_whole(place / "model" / "README.md", model_card(opened.recipe, node, place / "model", facts, []))
    return facts


def _backbone(recipe: Recipe, model: Path | None, tasks: list[Task], *, trainable: bool = False) -> Backbone:
    from multitune.models.loading import load_backbone, load_saved

    if model is not None and is_fused(model):
        return load_fused(model)
    if model is not None:
        return load_saved(model, trainable=trainable)
    return load_backbone(recipe.base, tasks, seed=recipe.seed)


def _to_train(
    node: TrainNode, recipe: Recipe, model: Path | None, tasks: list[Task]
) -> tuple[Backbone, dict[str, Tensor]]:
    """Return the model that a node trains, not adapted yet, and the prompts that it kept from earlier stages."""
    from multitune.models.task_prompts import detach_prompts

    backbone = _backbone(recipe, model, tasks, trainable=node.step.adapt.method == CONTINUE)
    if backbone.form == "encoder" and node.model != BASE:
        backbone = _with_heads_first(backbone, tasks, recipe.seed)
    return backbone, detach_prompts(backbone.model)


def _adapted(
    node: TrainNode, backbone: Backbone, place: Path, models: Mapping[str, Path | None], seed: int
) -> Backbone:
    """Return a model with what the node's method trains, behind the prompts that the step asks for."""
    from multitune.adaptation.adapting import adapt
    from multitune.adaptation.config import for_tasks

    step = node.step
    adaptation = for_tasks(step.adapt, node.tasks)
    backbone = adapt(backbone, adaptation, steps=step.training.steps, seed=seed, folder=place)
    attach_for(node, backbone, models, seed)
    return backbone


def _tokens(task: Task, split: Split, backbone: Backbone, node: TrainNode, folder: Path) -> TokenTable:
    from multitune.mixing.tokens import tokenise

    config = node.step.training
    with first_of_machine_first():
        return tokenise(
            task,
            split,
            backbone.tokenizer,
            backbone.form,
            folder,
            max_length=config.max_length,
            on_overlong=config.on_overlong,
            cache=fingerprint.cache_folder() / "tokens",
        )


def _is_whole(model: Path) -> bool:
    """Return whether a saved model can be read; a damaged one is trained again rather than trusted."""
    from multitune.models.location import checked_folder

    try:
        checked_folder(model)
    except MultituneError as error:
        logger.warning("the model in %s is damaged and is made again: %s", model, error.what)
        return False
    return True


def with_heads(backbone: Backbone, tasks: list[Task]) -> list[Task]:
    """Keep the tasks for which an encoder has a head; it cannot answer others."""
    from multitune.models.heads import MultiTaskEncoder

    heads = {head.task for head in backbone.model.heads} if isinstance(backbone.model, MultiTaskEncoder) else set()
    if missing := [task.name for task in tasks if task.name not in heads]:
        logger.warning("the encoder has no head for %s: not scored", ", ".join(missing))
    return [task for task in tasks if task.name in heads]


def _with_heads_first(backbone: Backbone, tasks: list[Task], seed: int) -> Backbone:
    """Bring the heads of the tasks into the order of their ids; learned heads of other tasks stay for scoring."""
    from multitune.models.heads import with_heads_for

    names = {task.name for task in tasks}
    others = [task for task in backbone.tasks if task.name not in names]
    model = with_heads_for(backbone.model, tasks, others, seed)
    return replace(backbone, model=model, tasks=(*tasks, *others))


def _say_shares(node: TrainNode, tables: list[TokenTable], mixture: MixtureConfig) -> None:
    """Log the share that every task will get, in examples and in tokens."""
    from multitune.mixing.policies import share_table

    rows = {table.task: len(table) for table in tables}
    mean_tokens = {table.task: float(table.lengths.mean()) for table in tables}
    logger.info("%s: the policy '%s' gives", node.name, mixture.policy)
    for share in share_table(mixture, rows, mean_tokens):
        logger.info(
            "  %-24s %6.1f%% of the examples  %6.1f%% of the tokens  (%d rows)",
            share.task,
            100 * share.examples,
            100 * share.tokens,
            share.rows,
        )


# -- score -------------------------------------------------------------------------------------------------------------


def _score(
    node: ScoreNode, opened: Opened, place: Path, model: Path | None, progress: ScoringProgress | None
) -> list[dict[str, Any]]:
    """Return what was measured of a model: per task and metric the value and its interval; keep its answers."""
    from transformers import set_seed

    from multitune.scoring.score import save_predictions, score_tasks
    from multitune.scoring.scoreboard import measures

    recipe = opened.recipe
    set_seed(recipe.seed)
    splits = scored_splits(node, recipe)
    names = tuple(name for name in node.tasks if splits[name])
    if left_out := [name for name in node.tasks if not splits[name]]:
        logger.warning("not scored, for want of test or validation rows: %s", ", ".join(left_out))
    if not names:
        return []
    tasks = opened.tasks(names)
    table = _table(opened, model)
    if table is not None:
        tasks = that_it_answers(table, tasks)
        score = partial(score_tables, table)
    else:
        backbone = _backbone(recipe, model, tasks)
        if backbone.form == "encoder":
            tasks = with_heads(backbone, tasks)
        fused = model is not None and is_fused(model)
        score_as = score_fused(place / "coefficients") if fused else score_tasks
        score = partial(score_as, backbone, progress=progress)
    logger.info("scoring %s on %d tasks", node.model, len(tasks))
    # The intervals have a seed of their own: training seeds share the scores of a base that none of them changes.
    own = tasks[rank() :: world_size()]  # every process scores some of the tasks
    scored = score(own, recipe.folder, node.config, seed=INTERVALS_SEED)
    by_task = {score.task: score for part in gather(scored) for score in part}
    if not is_main():
        return []
    scores = [by_task[task.name] for task in tasks]
    try:
        remove(place / "predictions")
        save_predictions(scores, place / "predictions")
    except OSError as error:
        raise disk_error(error, place / "predictions") from error
    return measures(scores)


def _table(opened: Opened, model: Path | None) -> TableModel | Baseline | None:
    """Return the estimator that is scored, the baseline where a recipe has no model of its own; None for models."""
    if model is not None:
        return load_table_model(model) if is_table_model(model) else None
    recipe = opened.recipe
    return None if recipe.model is not None else fit_baseline(opened.tasks(tuple(recipe.tasks)), recipe.folder)


def scored_splits(node: ScoreNode, recipe: Recipe) -> dict[str, Split | None]:
    """Return the split that every task of a score node is scored on; None for one that has nothing to be scored on."""
    from multitune.scoring.score import scored_split

    return {name: scored_split(recipe.tasks[name], node.config.split) for name in node.tasks}
