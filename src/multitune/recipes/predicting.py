"""Answers to rows of files, outside any recipe."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from multitune.errors import MultituneError, nearest
from multitune.recipes.run_folder import disk_error
from multitune.recipes.scoring import backbone_of, tasks_of
from multitune.tabular.task_model import is_table_model, load_table_model
from multitune.tasks.bad_rows import BadRows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multitune.scoring.predict import Answer
    from multitune.tasks.task import Example, Task

TABLE_ROWS_AT_ONCE = 16384
"""Rows that an estimator answers at once; memory grows with it."""

logger = logging.getLogger("multitune.recipes")


def predict_files(
    model: str, files: Sequence[Path], *, tasks: Path | None, task: str | None, rows: int | None, seed: int = 0
) -> Iterator[Answer]:
    """Yield a model's answers to the rows of files, in their order.

    Args:
        model: folder of a whole model, an adapter or a fusion, hub id, or the name of the embedded base.
        files: of any format that a task may have.
        tasks: a recipe or suite file that says how rows are asked; None asks the model, which knows the tasks that it
            was trained on.
        task: its name; may be left out where there is one alone.
        rows: at most so many in all.
        seed: of weights that a checkpoint lacks.

    Raises:
        MultituneError: a file, the task or the model is not as it should be.
    """
    from multitune.scoring.predict import predict
    from multitune.tasks.prompting import is_resolved, resolve
    from multitune.tasks.sources import read_examples
    from multitune.tasks.task import Source

    found, folder = tasks_of(tasks) if tasks is not None else ([], Path())
    chosen = _chosen(found, task, str(tasks)) if found else None
    if chosen is not None and not is_resolved(chosen) and not is_table_model(Path(model)):
        chosen = resolve(chosen, folder)
    for file in files:
        if not file.exists():
            raise MultituneError(f"There is no file '{file}'.", "predict", "Correct the path.")
    bad_rows = BadRows()
    sources = [Source(path=str(file.resolve())) for file in files]
    examples = islice(chain.from_iterable(read_examples(source, Path(), bad_rows) for source in sources), rows)
    if is_table_model(Path(model)):
        yield from predict_table(model, examples, chosen.name if chosen is not None else task)
    else:
        backbone = backbone_of(model, [chosen] if chosen is not None else [], seed)
        if chosen is None:
            chosen = _chosen(list(backbone.tasks), task, model)
        logger.info("asking %s as the task %s", model, chosen.name)
        yield from predict(backbone, chosen, examples, bad_rows=bad_rows)
    if bad_rows.count:
        logger.warning("%d rows were left out:%s", bad_rows.count, bad_rows.listing())


def predict_table(model: str, examples: Iterator[Example], name: str | None) -> Iterator[Answer]:
    """Yield an estimator's answers to rows, as one of the tasks that it has learned.

    Raises:
        MultituneError: it has learned no such task, or a row lacks a column.
    """
    from multitune.scoring.predict import Answer

    table = load_table_model(Path(model))
    task = _chosen(list(table.tasks), name, model)
    logger.info("asking %s as the task %s", model, task.name)
    while block := list(islice(examples, TABLE_ROWS_AT_ONCE)):
        for example, answer in zip(block, table.answers(task, block), strict=True):
            told = task.choice_texts[int(answer)] if task.kind == "label" else answer
            yield Answer(example.where, example.fields, told)


def _chosen(tasks: list[Task], name: str | None, where: str) -> Task:
    names = [task.name for task in tasks]
    if not tasks:
        raise MultituneError(
            "The model does not say which tasks it was trained on.", where, "Give a recipe or suite file with --tasks."
        )
    if name is None and len(tasks) == 1:
        return tasks[0]
    if name not in names:
        what = f"There is no task '{name}'.{nearest(name, names)}" if name else "There are several tasks."
        raise MultituneError(what, where, f"Name one with --task: {', '.join(names)}.")
    return tasks[names.index(name)]


def write_answers(answers: Iterable[Answer], out: Path) -> int:
    """Write answers as JSON lines, one per row; the file appears whole or not at all. Returns how many."""
    temporary = out.with_name(out.name + ".partial")
    count = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for answer in answers:
                file.write(line_of(answer) + "\n")
                count += 1
        os.replace(temporary, out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def line_of(answer: Answer) -> str:
    """Return an answer as a line of JSON: where the row stood, the prediction, the row."""
    told = {"where": answer.where, "prediction": answer.prediction, "row": dict(answer.fields)}
    return json.dumps(told, ensure_ascii=False, default=str)
