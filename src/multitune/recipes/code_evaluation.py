"""The study of models on code tasks: every model, task and way of asking is a cell, kept as it is finished."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError, nearest
from multitune.recipes.fingerprint import digest, location_fingerprint
from multitune.recipes.run_folder import disk_error, locked, write_whole
from multitune.recipes.scoring import backbone_of, tasks_of
from multitune.scoring.code.evaluation import (
    ALONE,
    GREEDY,
    CodeAnswers,
    Decoding,
    Mode,
    demonstrations,
    endings,
    measured,
    written,
)
from multitune.scoring.code.sandbox import Limits, Outcome
from multitune.scoring.code.trials import run_answers
from multitune.scoring.score import ScoreConfig, scored_rows, scored_split
from multitune.tasks.sources import source_fingerprint
from multitune.tasks.task import Task

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.scoring.code.nearest import Embed
    from multitune.tasks.task import Prompted

VERSION = 2
"""Raised when the same settings would give other answers."""

ROWS_AT_ONCE = 128
"""Rows that are answered, run and kept together: what an interruption costs at most."""

Progress = Callable[[str, int, int], None]

logger = logging.getLogger("multitune.recipes")


@dataclass(frozen=True)
class Study:
    """What is asked, beside the models.

    Attributes:
        tasks: recipe or suite file.
        names: of its tasks; () is all of kind generate that have rows to score.
        modes: ways of asking.
        decoding: how answers are written.
        rows: at most so many examples per task, the same for all cells.
        execute: how far programs may go; None runs none.
        workers: programs at a time; None: as many as cores.
        encoder: of sentences, for the nearest examples; None: TF-IDF.
        merged: whether adapters that can are added into the weights before answers are written.
        seed: of the intervals.
    """

    tasks: Path
    names: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = (ALONE,)
    decoding: Decoding = GREEDY
    rows: int | None = None
    execute: Limits | None = None
    workers: int | None = None
    encoder: str | None = None
    merged: bool = True
    seed: int = 0


def evaluate(models: Sequence[str], study: Study, out: Path, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Return the scores of every cell, and keep answers and scores in a folder; cells that are there are not redone.

    Args:
        models: folders, hub ids or the name of the embedded base.
        study: what is asked.
        out: ``cells/<cell>.jsonl`` holds a cell's answers with how they ended, ``scores.json`` what is returned.
        progress: called with (what is going on, rows done, rows in all).

    Returns:
        One mapping per cell: model, task, split, mode, shots, seed, n, metrics (name -> value, low, high), endings of
        the programs, left_out (demonstrations that did not fit), and what writing took: seconds, tokens,
        tokens_per_second, peak_bytes (see ``training.cost.peak_memory``; None where the system does not tell).

    Raises:
        MultituneError: the file, a task, a model or the folder is not as it should be.
    """
    tasks, folder = _tasks(study)
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with locked(out):
        return _evaluated(models, study, tasks, folder, out, progress)


def _evaluated(
    models: Sequence[str], study: Study, tasks: Sequence[Task], folder: Path, out: Path, progress: Progress | None
) -> list[dict[str, Any]]:
    config = ScoreConfig(rows=study.rows)
    rows = {task.name: scored_rows(task, folder, config) for task in tasks}
    found = []
    for model in models:
        identity = _identity(model)
        backbone: Backbone | None = None
        for task in tasks:
            split, asked = rows[task.name]
            for mode in study.modes:
                path = out / "cells" / f"{_cell(identity, task, mode, study, asked, folder)}.jsonl"
                if not path.exists():
                    backbone = backbone or _loaded(model, tasks, study)
                    logger.info("%s, %s, %s", model, task.name, mode.name)
                    _answer(backbone, task, asked, mode, study, folder, path, progress)
                answers, cost = _read(path)
                found.append(
                    {
                        "model": model, "task": task.name, "split": split, "mode": mode.name, "shots": mode.shots,
                        "seed": mode.seed, "n": len(answers), "metrics": measured(answers, study.decoding, study.seed),
                        "endings": dict(endings(answers)), "left_out": sum(one.left_out for one in answers),
                        **cost, "answers": str(path),
                    }
                )  # fmt: skip
                write_whole(out / "scores.json", json.dumps(found, indent=2) + "\n")
    return found


def _tasks(study: Study) -> tuple[list[Task], Path]:
    """The tasks that are asked, resolved.

    Raises:
        MultituneError: a name is unknown, none is left, a task is of another kind or says nothing of its tests.
    """
    from multitune.tasks.prompting import resolve

    tasks, folder = tasks_of(study.tasks)
    known = [task.name for task in tasks]
    for name in study.names:
        if name not in known:
            raise MultituneError(
                f"There is no task '{name}'.{nearest(name, known)}",
                str(study.tasks),
                f"Use one of: {', '.join(known)}.",
            )
    chosen = [task for task in tasks if task.name in study.names or not study.names]
    resolved = [resolve(task, folder) for task in chosen if scored_split(task, "test")]
    asked = [task for task in resolved if task.kind == "generate"]
    if not asked or (study.names and len(asked) < len(study.names)):
        raise MultituneError(
            "No task of kind generate with test or validation rows is left.", str(study.tasks), "Name others."
        )
    for task in asked:
        if study.execute is not None and task.program is None and task.cases is None:
            raise MultituneError(
                f"Task '{task.name}' does not say how an answer is tested.",
                f"{study.tasks}, tasks.{task.name}.program",
                "Give it a template of the program to run, with {{ completion }}, or cases, or leave --execute out.",
            )
        if task.train is None and any(mode.shots for mode in study.modes):
            raise MultituneError(
                f"Task '{task.name}' has no training rows to show as examples.",
                f"{study.tasks}, tasks.{task.name}.train",
                "Give it train, or ask zero-shot alone.",
            )
    return asked, folder


def _loaded(model: str, tasks: Sequence[Task], study: Study) -> Backbone:
    """Return a model whose adapter, if it can, is part of its weights: decoding is most of the work."""
    from multitune.models.loading import merged_model

    backbone = backbone_of(model, list(tasks), study.seed)
    if not study.merged or not hasattr(backbone.model, "peft_config"):
        return backbone
    try:
        return replace(backbone, model=merged_model(backbone).eval())
    except MultituneError as error:
        logger.info("%s: %s It is read beside them.", model, error.what)
        return backbone


def _identity(model: str) -> str:
    from multitune.models.config import ModelConfig

    return location_fingerprint(ModelConfig(name=model))


def _cell(identity: str, task: Task, mode: Mode, study: Study, rows: Sequence[Prompted], folder: Path) -> str:
    """The name of a cell: what is read by people, and a digest of everything that its answers depend on."""
    asked = [(row.prompt, row.target, row.example.content if study.execute else "") for row in rows]
    told = {
        "version": VERSION,
        "model": identity,
        "task": task.model_dump(mode="json", exclude={"metrics", "tags", "weight", "held_out"}),
        "rows": asked,
        "store": source_fingerprint(task.train, folder) if mode.shots and task.train is not None else None,
        "mode": asdict(mode),
        "decoding": asdict(study.decoding),
        "execute": None if study.execute is None else asdict(study.execute),
        "encoder": study.encoder if mode.way == "rag" else None,
        "merged": study.merged,
    }
    return f"{task.name}-{mode.name.replace(':', '')}-{digest(told)[:12]}"


def _answer(
    backbone: Backbone,
    task: Task,
    rows: Sequence[Prompted],
    mode: Mode,
    study: Study,
    folder: Path,
    path: Path,
    progress: Progress | None,
) -> None:
    """Answer all rows of a cell, block by block; a cell that was interrupted goes on behind its last whole block."""
    from multitune.training.cost import peak_memory, reset_peak_memory

    shown = demonstrations(rows, _store(task, folder, mode), mode, _embed(study, mode))
    partial = path.with_name(path.name + ".partial")
    done = _whole_blocks(partial, len(rows))
    with partial.open("a", encoding="utf-8") as file:
        for start in range(done, len(rows), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            decoding = replace(study.decoding, seed=study.decoding.seed + start)
            writing = _within(progress, f"{task.name}: writing", start, len(rows))
            reset_peak_memory()
            began = time.monotonic()
            answers = written(backbone, task, rows[block], shown[block], decoding, writing)
            seconds = (time.monotonic() - began) / len(answers)
            peak = peak_memory(next(backbone.model.parameters()).device)
            if study.execute is not None:
                running = None if progress is None else lambda n, of: progress(f"{task.name}: running", n, of)
                answers = run_answers(
                    task, rows[block], answers, study.execute, workers=study.workers, progress=running
                )
            cost = {"seconds": round(seconds, 4), "peak_bytes": peak}
            lines = [json.dumps({**asdict(one), **cost}, ensure_ascii=False) for one in answers]
            file.write("\n".join(lines) + "\n")
            file.flush()
    partial.rename(path)


def _within(progress: Progress | None, told: str, start: int, total: int) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, _: progress(told, start + done, total)


def _store(task: Task, folder: Path, mode: Mode) -> list[Prompted]:
    from multitune.tasks.prompting import prompted_examples

    return list(prompted_examples(task, "train", folder, templates="first")) if mode.shots else []


def _embed(study: Study, mode: Mode) -> Embed | None:
    from multitune.scoring.code.nearest import sentence_encoder

    return sentence_encoder(study.encoder) if study.encoder is not None and mode.way == "rag" and mode.shots else None


def _whole_blocks(partial: Path, rows: int) -> int:
    """Rows of an interrupted cell that are kept: those of whole blocks; what is behind them is cut off."""
    if not partial.exists():
        return 0
    lines = partial.read_bytes().splitlines(keepends=True)
    whole = len([line for line in lines if line.endswith(b"\n")])
    kept = whole if whole == rows else whole // ROWS_AT_ONCE * ROWS_AT_ONCE
    partial.write_bytes(b"".join(lines[:kept]))
    return kept


def _read(path: Path) -> tuple[list[CodeAnswers], dict[str, Any]]:
    """Return the answers of a cell, and what writing them took.

    Raises:
        MultituneError: a line is none.
    """
    answers, seconds, peaks = [], 0.0, []
    for number, line in enumerate(_lines(path), start=1):
        with suppress(ValueError, TypeError, KeyError):
            told = json.loads(line)
            seconds += told.pop("seconds")
            peaks.append(told.pop("peak_bytes"))
            outcomes = told.pop("outcomes")
            ran = None if outcomes is None else tuple(Outcome(**one) for one in outcomes)
            shares = None if told["cases"] is None else tuple(told["cases"])
            answers.append(CodeAnswers(**{**told, "answers": tuple(told["answers"]), "outcomes": ran, "cases": shares}))
        if len(answers) < number:
            raise MultituneError("This line is no answer.", f"{path}:{number}", "Delete the file and evaluate again.")
    tokens = sum(one.tokens for one in answers)
    return answers, {
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_bytes": max((peak for peak in peaks if peak is not None), default=None),
    }


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file
