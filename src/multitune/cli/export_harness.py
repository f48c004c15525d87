"""`multitune export-harness`: our tasks as task files of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multitune.cli.run import Json


def export_harness(
    tasks: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe, a suite, or a folder of tasks.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of a YAML file and the rows of every task.")],
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="At most so many rows per task.")] = None,
    json: Json = False,
) -> None:
    """Write tasks as files of lm-evaluation-harness, for every program that reads those."""
    from multitune.cli.output import answer_json, speak
    from multitune.recipes.harness import export_tasks

    speak()
    files = export_tasks(tasks, out, rows)
    if json:
        answer_json({"out": out, "files": files})
        return
    names = ",".join(file.stem for file in files)
    typer.echo(f"Wrote {len(files)} tasks to {out}.\n  lm_eval --include_path {out} --tasks {names} --model hf ...")
