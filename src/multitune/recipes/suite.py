"""From a folder of Super-NaturalInstructions to a suite: a file of ordinary tasks, some held out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError, nearest
from multitune.recipes.run_folder import disk_error, write_whole
from multitune.tasks.super_natural_instructions import (
    SPLITS,
    TEST,
    VALIDATION,
    Definition,
    Encoding,
    as_task,
    read_folder,
    rows_of,
)
from multitune.tasks.task import Task

SUITE_FILE = "suite.yaml"


@dataclass(frozen=True)
class SuitePlan:
    """What becomes of a folder of tasks.

    Attributes:
        encoding, positive: of the prompts, see ``super_natural_instructions.prompt_template``.
        held_out_categories: never trained on, with all their tasks.
        held_out_tasks: never trained on, while others of their category are.
        seed: of the right output that stands for an instance's several.
    """

    encoding: Encoding = "definition"
    positive: int = 2
    held_out_categories: tuple[str, ...] = ()
    held_out_tasks: tuple[str, ...] = ()
    seed: int = 42


def folder_tasks(folder: Path, plan: SuitePlan = SuitePlan()) -> list[Task]:
    """Return the tasks of a folder whose rows lie in files of their own.

    Raises:
        MultituneError: the folder is not as it should be, or has instances inside its task files.
    """
    definitions = read_folder(folder)
    if any(one.files is None for one in definitions):
        raise MultituneError(
            "The tasks of this folder hold their instances, which are not split yet.",
            str(folder),
            f"Write it as a suite first: multitune suite {folder} --out suite.",
        )
    held_out = _held_out(definitions, plan)
    return [
        as_task(
            one,
            {split: str(path) for split, path in (one.files or {}).items()},
            encoding=plan.encoding,
            positive=plan.positive,
            held_out=one.name in held_out,
        )
        for one in definitions
    ]


def write_suite(folder: Path, out: Path, plan: SuitePlan) -> dict[str, Any]:
    """Write ``suite.yaml`` and, for tasks that hold their instances, the rows of their splits; return what there is.

    Returns:
        suite: the file; tasks: how many; trained, held_out_tasks, held_out_categories: their names; shared: tasks with
        fewer than 120 instances, whose splits are the same rows.

    Raises:
        MultituneError: the folder is not as it should be, a held-out name is unknown, nothing is left to train on.
    """
    import yaml

    definitions = read_folder(folder)
    held_out = _held_out(definitions, plan)
    if len(held_out) == len(definitions):
        raise MultituneError("Every task is held out.", str(folder), "Leave a category to train on.")
    tasks: dict[str, Any] = {}
    for one in definitions:
        sources = _written(one, out, plan.seed) if one.files is None else _relative(one, out)
        task = as_task(
            one, sources, encoding=plan.encoding, positive=plan.positive, held_out=one.name in held_out
        ).model_dump(mode="json", exclude_defaults=True, exclude={"name"})
        for split in SPLITS:
            if split in task:
                task[split] = task[split]["path"]
        tasks[one.name] = task
    try:
        write_whole(out / SUITE_FILE, yaml.safe_dump({"tasks": tasks}, sort_keys=False, allow_unicode=True, width=110))
    except OSError as error:
        raise disk_error(error, out) from error
    return {
        "suite": out / SUITE_FILE,
        "tasks": len(tasks),
        "trained": [one.name for one in definitions if one.name not in held_out],
        "held_out_tasks": list(plan.held_out_tasks),
        "held_out_categories": list(plan.held_out_categories),
        "shared": [one.name for one in definitions if one.files is None and _is_short(one)],
    }


def _is_short(one: Definition) -> bool:
    return len(one.instances) < TEST + 2 * VALIDATION


def _held_out(definitions: Sequence[Definition], plan: SuitePlan) -> set[str]:
    """Return the names of the tasks that are never trained on.

    Raises:
        MultituneError: a category or task is unknown, or held out twice.
    """
    categories = list(dict.fromkeys(one.category for one in definitions))
    names = [one.name for one in definitions]
    for kind, asked, known in (
        ("category", plan.held_out_categories, categories),
        ("task", plan.held_out_tasks, names),
    ):
        for name in asked:
            if name not in known:
                raise MultituneError(
                    f"There is no {kind} '{name}'.{nearest(name, known)}",
                    f"--held-out-{kind} {name}",
                    f"Use one of: {', '.join(known[:20])}{' ...' if len(known) > 20 else ''}.",
                )
    whole = {one.name for one in definitions if one.category in plan.held_out_categories}
    for name in plan.held_out_tasks:
        if name in whole:
            raise MultituneError(
                f"The category of '{name}' is held out as a whole.", f"--held-out-task {name}", "Name it once."
            )
    return whole | set(plan.held_out_tasks)


def _written(one: Definition, out: Path, seed: int) -> dict[Any, str]:
    """Write the splits of a task, and return their paths relative to the suite."""
    sources = {}
    for split in SPLITS:
        place = Path("data") / one.name / f"{split}.jsonl"
        lines = _json_lines(rows_of(one, split, seed))
        try:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            write_whole(out / place, lines)
        except OSError as error:
            raise disk_error(error, out) from error
        sources[split] = place.as_posix()
    return sources


def _json_lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _relative(one: Definition, out: Path) -> dict[Any, str]:
    """Return the paths of a task's files as the suite names them: relative where they lie beside or below it."""
    import os

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    return {
        split: Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
        for split, path in (one.files or {}).items()
    }
