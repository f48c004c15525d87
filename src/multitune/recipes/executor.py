"""Walks a recipe's graph: does what is not done yet, and nothing else."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError
from multitune.mixing.policies import MixtureConfig, Proportional
from multitune.recipes import fingerprint
from multitune.recipes.cards import model_card
from multitune.recipes.graph import Node, ScoreNode, TrainNode, build, refuse_rows_longer_than
from multitune.recipes.run_folder import WRITING_FAILED, RunFolder, disk_error, read_finished, write_whole
from multitune.recipes.schema import BASE, Recipe
from multitune.tasks.task import Split, Task

if TYPE_CHECKING:
    from multitune.mixing.tokens import TokenTable
    from multitune.models.loading import Backbone

logger = logging.getLogger("multitune.recipes")

ScoringProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        folder: of the run.
        done: nodes that were worked on.
        kept: nodes that stood already.
        seconds: wall time.
    """

    folder: Path
    done: tuple[str, ...]
    kept: tuple[str, ...]
    seconds: float


def run(
    recipe: Recipe, out: Path, *, fresh: bool = False, command: str = "", progress: ScoringProgress | None = None
) -> RunResult:
    """Run a recipe into a folder; go on where an earlier run of it stopped.

    A node whose inputs are those of its finished result is kept. A changed node is done again, and with it what reads
    its model. A killed training goes on from its last whole checkpoint.

    Args:
        recipe: checked by ``load_recipe``.
        out: the run folder; made when it does not exist.
        fresh: forget what the folder holds.
        command: as shown in ``run.json`` and in how to go on.
        progress: called with (task, examples done, examples in all) while scoring.

    Raises:
        MultituneError: whatever is wrong with data, model, folder or training.
        Interrupted: training was asked to stop; the same command goes on.
    """
    started = time.monotonic()
    folder = RunFolder(Path(out))
    with folder.locked():
        folder.prepare(recipe, command, fresh=fresh)
        executor = _Executor(recipe, folder, progress)
        try:
            for node in build(recipe):
                executor.do(node)
        except OSError as error:
            if error.errno not in WRITING_FAILED:
                raise
            raise disk_error(error, Path(error.filename or folder.path)) from error
        finally:
            seconds = time.monotonic() - started
            if executor.worked:
                folder.record(recipe, command, seconds)
    return RunResult(folder.path, tuple(executor.done), tuple(executor.kept), seconds)


@dataclass
class _Executor:
    """What nodes of one run share: the resolved tasks, and the fingerprint of every model that stands."""

    recipe: Recipe
    folder: RunFolder
    progress: ScoringProgress | None
    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    resolved: dict[str, Task] = field(default_factory=dict)
    worked: bool = False

    def do(self, node: Node) -> None:
        """Do a node, or keep its finished result."""
        if not self.models:
            self.models[BASE] = fingerprint.model_fingerprint(self.recipe)
        finished = self._train(node) if isinstance(node, TrainNode) else self._score(node)
        (self.done if finished else self.kept).append(node.name)

    def tasks(self, names: tuple[str, ...]) -> list[Task]:
        """Return tasks with layout, kind and choices known; read from the data once per run."""
        from multitune.tasks.prompting import resolve

        for name in names:
            if name not in self.resolved:
                self.resolved[name] = resolve(self.recipe.tasks[name], self.recipe.folder)
        return [self.resolved[name] for name in names]

    # -- train -----------------------------------------------------------------------------------------------------

    def _train(self, node: TrainNode) -> bool:
        place = self.folder.node(node.name)
        inputs = fingerprint.train_fingerprint(node, self.recipe, self.models[node.model])
        self.models[node.name] = inputs
        if read_finished(place / "artifact.json", inputs) and _is_whole(place / "model"):
            logger.info("%s stands already", node.name)
            return False
        (place / "artifact.json").unlink(missing_ok=True)
        if not read_finished(place / "begun.json", inputs):
            # what an unfinished run of other settings left: its checkpoints would crowd out the new ones
            shutil.rmtree(place, ignore_errors=True)
            write_whole(place / "begun.json", json.dumps({"fingerprint": inputs}) + "\n")
        facts = self._trained(node, place)
        write_whole(place / "artifact.json", json.dumps({"fingerprint": inputs, **facts}, indent=2) + "\n")
        shutil.rmtree(place / "checkpoints", ignore_errors=True)  # the model is whole; they only take space
        return True

    def _trained(self, node: TrainNode, place: Path) -> dict[str, Any]:
        from transformers import set_seed

        from multitune.adaptation.adapting import adapt
        from multitune.models.loading import save_backbone
        from multitune.training.train import train

        self.worked = True
        step, seed = node.step, self.recipe.seed
        set_seed(seed)
        tasks = self.tasks(node.tasks)
        backbone = self._backbone(node.model, tasks)
        text = backbone.model.config.get_text_config()
        refuse_rows_longer_than(getattr(text, "max_position_embeddings", None), node)
        if backbone.form == "encoder" and node.model != BASE:
            backbone = _with_heads_first(backbone, tasks, seed)
        tables = [self._tokens(task, "train", backbone, node) for task in tasks]
        backbone = adapt(backbone, step.adapt, steps=step.training.steps, seed=seed)
        given = {name: weight for name, weight in step.training.task_weights.items() if name in node.tasks}
        weights = {task.name: task.weight for task in tasks} | given
        mixture = step.mixture if len(tasks) > 1 else Proportional()  # one task alone has no shares to speak of
        _say_shares(node, tables, mixture)
        balancer = step.training.balancer if len(tasks) > 1 else None  # one task alone has nothing to balance either
        config = step.training.model_copy(update={"task_weights": weights, "balancer": balancer})
        watched = tasks if config.uses_validation else []
        validation = [self._tokens(task, "validation", backbone, node) for task in watched]
        try:
            result = train(backbone, tables, mixture, config, place, seed=seed, validation=validation, title=node.name)
            save_backbone(backbone, place / "model", merged=step.export == "merged")
        except OSError as error:
            raise disk_error(error, place) from error
        facts = {
            "name": node.name,
            "model": node.model,
            "tasks": list(node.tasks),
            "steps": result.steps,
            "seconds": round(result.seconds, 2),
            "trainable_parameters": result.trainable_parameters,
            "fill": result.fill,
            "rows": {table.task: len(table) for table in tables},
        }
        write_whole(place / "model" / "README.md", model_card(self.recipe, node, place / "model", facts, []))
        return facts

    def _backbone(self, model: str, tasks: list[Task]) -> Backbone:
        from multitune.models.loading import load_backbone, load_saved

        if model == BASE:
            return load_backbone(self.recipe.model, tasks, seed=self.recipe.seed)
        return load_saved(self.folder.node(model) / "model")

    def _tokens(self, task: Task, split: Split, backbone: Backbone, node: TrainNode) -> TokenTable:
        from multitune.mixing.tokens import tokenise

        config = node.step.training
        return tokenise(
            task,
            split,
            backbone.tokenizer,
            backbone.form,
            self.recipe.folder,
            max_length=config.max_length,
            on_overlong=config.on_overlong,
            cache=fingerprint.cache_folder() / "tokens",
        )

    # -- score -----------------------------------------------------------------------------------------------------

    def _score(self, node: ScoreNode) -> bool:
        from multitune.scoring.score import scored_split

        place = self.folder.node(node.name)
        splits = {name: scored_split(self.recipe.tasks[name], node.config.split) for name in node.tasks}
        tasks = self.tasks(node.tasks)
        inputs = fingerprint.score_fingerprint(node, self.recipe, tasks, self.models[node.model], splits)
        if finished := read_finished(place / "scores.json", inputs):
            self._to_scoreboard(node, finished["rows"])
            logger.info("%s is scored already", node.model)
            return False
        rows = self._scored(node, place, splits)
        self._to_scoreboard(node, rows)
        write_whole(place / "scores.json", json.dumps({"fingerprint": inputs, "rows": rows}) + "\n")
        card = place / "model" / "README.md"
        if card.exists():
            facts = json.loads((place / "artifact.json").read_text(encoding="utf-8"))
            trained = next(n for n in build(self.recipe) if isinstance(n, TrainNode) and n.name == node.model)
            write_whole(card, model_card(self.recipe, trained, place / "model", facts, rows))
        return True

    def _scored(self, node: ScoreNode, place: Path, splits: dict[str, Any]) -> list[dict[str, Any]]:
        from transformers import set_seed

        from multitune.scoring.score import save_predictions, score_tasks
        from multitune.scoring.scoreboard import score_rows

        self.worked = True
        set_seed(self.recipe.seed)
        names = tuple(name for name in node.tasks if splits[name])
        if left_out := [name for name in node.tasks if not splits[name]]:
            logger.warning("not scored, for want of test or validation rows: %s", ", ".join(left_out))
        if not names:
            return []
        tasks = self.tasks(names)
        backbone = self._backbone(node.model, tasks)
        if backbone.form == "encoder":
            tasks = with_heads(backbone, tasks)
        logger.info("scoring %s on %d tasks", node.model, len(tasks))
        scores = score_tasks(
            backbone, tasks, self.recipe.folder, node.config, seed=self.recipe.seed, progress=self.progress
        )
        try:
            shutil.rmtree(place / "predictions", ignore_errors=True)
            save_predictions(scores, place / "predictions")
        except OSError as error:
            raise disk_error(error, place / "predictions") from error
        step = node.name.removesuffix("@score")
        return score_rows(scores, run=self.recipe.name, step=step, model=node.model, seed=self.recipe.seed)

    def _to_scoreboard(self, node: ScoreNode, rows: list[dict[str, Any]]) -> None:
        from multitune.scoring.scoreboard import Scoreboard

        path = self.folder.scoreboard
        step = node.name.removesuffix("@score")
        known = {other.name.removesuffix("@score") for other in build(self.recipe) if isinstance(other, ScoreNode)}
        others = [row for row in Scoreboard.load(path).rows if row["step"] in known - {step}]
        Scoreboard([*others, *rows]).save(path)


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
    heads = {head.task for head in backbone.model.heads}
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
