"""Scores one model on the tasks of a file, outside any recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from multitune.errors import MultituneError
from multitune.recipes.fusing import is_fused, load_fused, score_fused
from multitune.recipes.node import with_heads
from multitune.recipes.reading import data_folder, read_yaml
from multitune.recipes.run_folder import disk_error
from multitune.recipes.schema_errors import schema_errors
from multitune.recipes.suite import folder_tasks
from multitune.recipes.tables import score_tables, that_it_answers
from multitune.scoring.score import ScoreConfig, TaskScore, scored_split
from multitune.tabular.task_model import is_table_model, load_table_model
from multitune.tabular.task_table import as_table_task
from multitune.tasks.super_natural_instructions import is_suite_folder
from multitune.tasks.task import Task

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.scoring.languages import LanguageCell, LanguageMean
    from multitune.scoring.levels import LevelScore

logger = logging.getLogger("multitune.recipes")


def score_model(
    model: str, file: Path, *, out: Path | None, seed: int, config: ScoreConfig, curve: Sequence[int] = ()
) -> list[TaskScore]:
    """Return the scores of a model on every task of a file that has test or validation rows.

    Args:
        model: folder of a whole model or adapter, hub id, or the name of the embedded base.
        file: a recipe or suite file; only its tasks are read.
        out: receives ``scoreboard.parquet`` and ``predictions/``; None keeps nothing.
        seed: of the intervals' resampling.
        config: how it is scored.
        curve: numbers of shots; the tasks are scored with each, one after the other. () keeps the config's own.

    Raises:
        MultituneError: the file, a task, the data or the model is not as it should be.
    """
    from multitune.scoring.score import save_predictions, score_tasks
    from multitune.scoring.scoreboard import Scoreboard, measures, score_rows
    from multitune.tasks.prompting import resolve

    found, folder = tasks_of(file)
    tasks = [task for task in found if scored_split(task, config.split)]
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        except OSError as error:
            raise disk_error(error, out) from error
    if not tasks:
        raise MultituneError("No task has test or validation rows.", str(file), "Give a task a test source.")
    if is_table_model(Path(model)):
        table = load_table_model(Path(model))
        resolved = that_it_answers(table, [resolve(as_table_task(task), folder) for task in tasks])
        score: Any = partial(score_tables, table)
    else:
        resolved = [resolve(task, folder) for task in tasks]
        backbone = backbone_of(model, resolved, seed)
        if backbone.form == "encoder":
            resolved = with_heads(backbone, resolved)
        fused = out is not None and is_fused(Path(model))
        score = partial(score_fused(out / "coefficients") if out is not None and fused else score_tasks, backbone)
    scores: list[TaskScore] = []
    for shots in curve or [config.shots]:
        new = score(resolved, folder, config.model_copy(update={"shots": shots}), seed=seed)
        if out is not None:
            save_predictions(new, out / "predictions" / (f"{shots}-shot" if curve else ""))
        scores += new
    if out is not None:
        board = Scoreboard.load(out / "scoreboard.parquet")
        board.append(score_rows(measures(scores), run=file.stem, step="score", model=model, seed=seed))
        board.save(out / "scoreboard.parquet")
    return scores


def levels_of(model: str, file: Path, scores: Sequence[TaskScore], seed: int = 0) -> list[LevelScore]:
    """Return the scores of a model by level and category, [] where no task of the file has a category.

    A task counts by its first metric where that is a mean over answers between 0 and 1; others are left out and logged.

    Args:
        model: whose training tasks decide the levels, as its folder tells them.
        file: as of `score_model`.
        scores: of one number of shots.
        seed: of the intervals' resampling.
    """
    from multitune.scoring.levels import TaskValues, by_level, category_of, level_of

    tasks = {task.name: task for task in tasks_of(file)[0]}
    if not any(category_of(task) for task in tasks.values()):
        return []
    trained = {task.name: category_of(task) for task in map(Task.model_validate, _training_tasks(model))}
    values, left_out = [], []
    for score in scores:
        task, answers = tasks[score.task], [one.score for one in score.predictions]
        mean, name = sum(answers) / len(answers), next(iter(score.metrics))
        if abs(mean - score.metrics[name]) > 1e-6 or not all(0 <= one <= 1 for one in answers):
            left_out.append(f"{task.name} ({name})")
            continue
        category = category_of(task)
        values.append(TaskValues(task.name, category, level_of(task.name, category, trained), answers))
    if left_out:
        logger.warning("Not in the table by level, as no mean of answers in 0 to 1: %s.", ", ".join(left_out))
    return by_level(values, seed=seed)


def languages_of(model: str, file: Path, scores: Sequence[TaskScore]) -> tuple[list[LanguageCell], list[LanguageMean]]:
    """Return the scores of a model by data set and language, nothing where the tasks name fewer than two languages.

    Args:
        model: whose training tasks count as seen languages, as its folder tells them.
        file: as of `score_model`.
        scores: of one number of shots.
    """
    from multitune.scoring.languages import language_cells, language_means, languages_seen, place_of
    from multitune.scoring.scoreboard import as_chosen, measures, of_templates

    tags = {task.name: task.tags for task in tasks_of(file)[0]}
    places = {score.task: place for score in scores if (place := place_of(score.task, tags[score.task])) is not None}
    if len({place.language for place in places.values()}) < 2:
        return [], []
    learned = [Task.model_validate(told) for told in _training_tasks(model)]
    seen = languages_seen(tags | {task.name: task.tags for task in learned}, [task.name for task in learned])
    measured = measures(scores)
    apart = of_templates(measured)
    whole = [row for row in as_chosen(measured) if row["task"] not in {one["task"] for one in apart}]
    cells = language_cells([*apart, *whole], places, seen)
    return cells, language_means(cells)


def _training_tasks(model: str) -> Sequence[Any]:
    """Return the tasks that a model's folder says it was trained on."""
    from multitune.models.loading import description_of

    return description_of(Path(model)).get("tasks", ()) if Path(model).is_dir() else ()


def tasks_of(file: Path) -> tuple[list[Task], Path]:
    """Return the tasks of a recipe or suite file, and the folder that their paths are relative to.

    A folder of Super-NaturalInstructions whose tasks have files of rows serves as it is.
    """
    if file.is_dir() and is_suite_folder(file):
        return folder_tasks(file), Path()
    document = read_yaml(file)
    tasks: Any = document.data.get("tasks")
    if isinstance(tasks, str):
        return tasks_of(file.parent / tasks)
    if not isinstance(tasks, dict):
        raise MultituneError("The file has no tasks.", str(file), "Write tasks: {name: {...}}.")
    found = []
    for name, task in tasks.items():
        if not isinstance(task, dict):
            raise MultituneError(
                f"The task '{name}' is not a mapping.", document.where(("tasks", name)), "Write {...}."
            )
        try:
            found.append(Task.model_validate({"name": name, **task}))
        except ValidationError as error:
            raise schema_errors(error, document, ("tasks", name)) from None
    return found, data_folder(document)


def backbone_of(model: str, tasks: list[Task], seed: int) -> Backbone:
    """Return the model of a folder, hub id or name; a new encoder gets heads for the tasks."""
    from multitune.models.config import ModelConfig
    from multitune.models.loading import load_backbone, load_saved

    folder = Path(model)
    if is_fused(folder):
        return load_fused(folder)
    if folder.is_dir() and not (folder / "config.json").exists() and (folder / "steps").is_dir():
        models = sorted(str(p.parent) for p in folder.glob("steps/*/model/README.md"))
        raise MultituneError(
            "This is a run folder, not a model.", model, f"Name one of its models: {', '.join(models) or 'none yet'}."
        )
    if folder.is_dir():
        return load_saved(folder)
    return load_backbone(ModelConfig(name=model), tasks, seed=seed)
