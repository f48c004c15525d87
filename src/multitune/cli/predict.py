"""`multitune predict`: ask a model rows that nobody has answered yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multitune.cli.run import Json


def predict(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder (whole model or adapter), a fusion file, a hub id, or tiny."),
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Rows, in any format of a task.")],
    task: Annotated[str | None, typer.Option("--task", help="Its name, where there are several.")] = None,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", help="A recipe or suite file; default: what the model was trained on."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write JSON lines here; default: standard output.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="At most so many rows.")] = None,
    json: Json = False,
) -> None:
    """Answer new rows with a model, as JSON lines: where a row stood, the prediction, the row."""
    from multitune.cli.output import answer_json, speak
    from multitune.recipes.predicting import line_of, predict_files, write_answers

    speak()
    answers = predict_files(model, files, tasks=tasks, task=task, rows=rows)
    if out is not None:
        count = write_answers(answers, out)
        if json:
            answer_json({"model": model, "rows": count, "out": out})
        else:
            typer.echo(f"{count:,} answers: {out}")
        return
    for answer in answers:
        typer.echo(line_of(answer))
