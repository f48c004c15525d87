"""Merges outside recipes: from a YAML file of ours or mergekit's, or from words of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.location import HUB_ID
from multitune.recipes.merge_search import SEARCH_FILE, best_of, candidates
from multitune.recipes.reading import Document, SafeYaml12, override, read_yaml
from multitune.recipes.schema_errors import schema_errors
from multitune.weights.config import MergeConfig
from multitune.weights.mergekit import is_mergekit, read_mergekit
from multitune.weights.parameters import METHOD_PARAMETERS, check
from multitune.weights.renaming import renamed


def read_merge(file: Path, assignments: Sequence[str] = ()) -> MergeConfig:
    """Return the merge that a file describes, with folders for models; it is checked, and no model is opened.

    Args:
        file: YAML. Folders in it are relative to it, or, where none is there, to the working directory.
        assignments: ``key=value``; a plain parameter's name is one of ``parameters``.

    Raises:
        MultituneErrors: everything that is wrong, with lines.
    """
    document = read_yaml(file)
    if is_mergekit(document.data):
        config = read_mergekit(document.data, str(file))
        config = MergeConfig.model_validate(_assigned(_written(config), assignments))
    else:
        override(document, [_qualified(each) for each in assignments])
        try:
            config = MergeConfig.model_validate(document.data)
        except ValidationError as error:
            raise schema_errors(error, document, schema=MergeConfig.model_json_schema()) from None
    check(config)
    return _located(config, file.resolve().parent)


def merge_of_words(
    method: str | None, base: str | None, models: Sequence[str], assignments: Sequence[str] = ()
) -> MergeConfig:
    """Return the merge that options describe.

    Raises:
        MultituneError: no method, and whatever `check` says.
    """
    if method is None:
        raise MultituneError(
            "There is nothing to merge: neither a file nor a method is given.",
            "multitune merge",
            f"Give FILE.yaml, or --method with one of: {', '.join(METHOD_PARAMETERS)}.",
        )
    told: dict[str, Any] = {"method": method, "base": base, "models": list(models)}
    config = MergeConfig.model_validate(_assigned(told, assignments))
    check(config)
    return _located(config, Path.cwd())


def sweep_merge(
    config: MergeConfig, sweep: Sequence[str], tasks: Path, rows: int | None, out: Path
) -> tuple[MergeConfig, dict[str, Any]]:
    """Compare candidates on validation rows; return the best merge and what every candidate reached.

    The Scoreboard of all candidates and ``search.json`` are written beside the result, into ``OUT-search``.

    Args:
        config: the merge, with folders.
        sweep: ``key=[value, ...]`` words; every combination is a candidate.
        tasks: a recipe or suite file.
        rows: at most so many validation rows per task.
        out: the folder of the result.
    """
    from multitune.recipes.merging import search_merges, told_search
    from multitune.recipes.run_folder import write_whole
    from multitune.recipes.scoring import tasks_of
    from multitune.scoring.score import ScoreConfig
    from multitune.scoring.scoreboard import Scoreboard, score_rows
    from multitune.tasks.prompting import resolve

    over = dict(_axis(word) for word in sweep)
    candidates(config, over)  # mistakes, before any data are read
    written, folder = tasks_of(tasks)
    found = [resolve(task, folder) for task in written if task.validation is not None]
    if not found:
        raise MultituneError(
            "Candidates are compared on validation rows, and no task has any.",
            str(tasks),
            "Give the tasks validation sources, for example validation: {fraction: 0.1}.",
        )
    place = out.with_name(f"{out.name}-search")
    tried = search_merges(config, over, found, folder, ScoreConfig(split="validation", rows=rows), place)
    best = best_of(tried)
    told = told_search(tried, best)
    write_whole(place / SEARCH_FILE, json.dumps(told, indent=2) + "\n")
    board = Scoreboard.load(place / "scoreboard.parquet")
    for each in tried:
        name = f"merged@{each.candidate.name}"
        board.append(score_rows(each.rows, run=out.name, step=name, model=name, seed=config.seed))
    board.save(place / "scoreboard.parquet")
    return best.candidate.config, told


def _axis(word: str) -> tuple[str, list[float | str]]:
    key, equals, text = word.partition("=")
    values = _yaml(text, f"--sweep {word}") if equals else None
    if not key or not isinstance(values, list) or not values or any(isinstance(each, dict | list) for each in values):
        raise MultituneError(
            f"'{word}' gives no values to compare.", f"--sweep {word}", "Write --sweep 'lambda=[0.1, 0.3, 0.5]'."
        )
    return key, values


def _written(config: MergeConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _assigned(told: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    document = Document(Path("--set"), {**told, "parameters": told.get("parameters", {})})
    override(document, [_qualified(each) for each in assignments])
    try:
        MergeConfig.model_validate(document.data)
    except ValidationError as error:
        raise schema_errors(error, document, schema=MergeConfig.model_json_schema()) from None
    return document.data


def _qualified(assignment: str) -> str:
    """Let a plain parameter's name stand for parameters.NAME."""
    key = assignment.partition("=")[0]
    is_key = key.partition(".")[0] in MergeConfig.model_fields
    return assignment if is_key or "=" not in assignment else f"parameters.{assignment}"


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=SafeYaml12)
    except yaml.YAMLError:
        raise MultituneError(f"'{text}' is not YAML.", where, "Quote the value.") from None


def _located(config: MergeConfig, folder: Path) -> MergeConfig:
    """Return a merge with a folder for every model."""

    def located(name: str) -> str:
        from multitune.recipes.merging import local_folder

        beside = folder / Path(name).expanduser()
        if beside.is_dir():
            return str(beside)
        if not Path(name).is_dir() and not HUB_ID.fullmatch(name):
            raise MultituneError(f"The model folder '{name}' does not exist.", name, "Give the path of a model folder.")
        return str(local_folder(ModelConfig(name=name)))

    return renamed(config, located)
