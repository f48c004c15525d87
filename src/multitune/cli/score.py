"""`multitune score`: score any model on a file of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from multitune.cli.run import Json


def score(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder (whole model or adapter), a fusion file, a hub id, or tiny."),
    ],
    tasks: Annotated[Path, typer.Option("--tasks", help="A recipe or suite file; its tasks are scored.")],
    out: Annotated[Path | None, typer.Option("--out", help="Keep scores and predictions in this folder.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="At most so many examples per task.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the intervals' resampling.")] = 0,
    json: Json = False,
) -> None:
    """Score a model on every task of a file that has test or validation rows."""
    from multitune.cli.output import answer_json, speak
    from multitune.recipes.scoring import score_model

    speak()
    scores = score_model(model, tasks, out=out, rows=rows, seed=seed)
    answer: dict[str, Any] = {
        "model": model,
        "out": out,
        "scores": [
            {
                "task": s.task,
                "split": s.split,
                "n": s.n,
                "metrics": s.metrics,
                "intervals": {name: list(interval) for name, interval in s.intervals.items()},
            }
            for s in scores
        ],
    }
    if json:
        answer_json(answer)
        return
    _print(answer["scores"])
    if out is not None:
        typer.echo(f"\nscores and predictions: {out}")


def _print(scores: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from multitune.cli.output import stdout_console

    table = Table(box=None, padding=(0, 1))
    for name in ("task", "split", "metric"):
        table.add_column(name)
    for name in ("n", "value", "95 % interval"):
        table.add_column(name, justify="right")
    for one in scores:
        for metric, value in one["metrics"].items():
            low, high = one["intervals"][metric]
            table.add_row(
                one["task"], one["split"], metric, f"{one['n']:,}", f"{value:.3f}", f"{low:.3f} to {high:.3f}"
            )
    stdout_console().print(table)
