"""`multitune compare-methods`: one recipe under several ways of adapting, with what each costs and reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from multitune.cli.run import Jobs, Json, Overrides, Yes


def compare_methods(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file with one train step.")],
    methods: Annotated[
        list[str], typer.Option("--method", "--methods", help="A method of `multitune methods`; give it several times.")
    ],
    more: Annotated[list[str], typer.Argument(hidden=True)] = [],  # noqa: B006 - typer reads the default
    budget: Annotated[
        float | None, typer.Option("--budget", help="Numbers that each may train; below 1: a share of the model's.")
    ] = None,
    rates: Annotated[
        list[float], typer.Option("--learning-rate", help="Tried with every method; give it several times.")
    ] = [],  # noqa: B006
    step: Annotated[str | None, typer.Option("--step", help="The train step, where the recipe has several.")] = None,
    against: Annotated[
        str, typer.Option("--against", help="What the drawing has to the right: trainable, bytes, peak_bytes, ...")
    ] = "trainable",
    out: Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/<name>-methods.")] = None,
    overrides: Overrides = [],  # noqa: B006
    jobs: Jobs = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Run a recipe with every method, at one budget, and tell what each trains, takes, keeps on disk and reaches."""
    from multitune.cli.output import answer_json, speak, stdout_console
    from multitune.cli.run import executed, run_and_report
    from multitune.errors import MultituneError, nearest
    from multitune.recipes.method_comparison import compared, method_sweep
    from multitune.recipes.run_folder import write_whole
    from multitune.reporting.quality_and_cost import AXES, quality_against_cost
    from multitune.reporting.report import write_report

    speak()
    if against not in AXES:
        raise MultituneError(
            f"There is no cost '{against}'.{nearest(against, AXES)}", "--against", f"Use one of: {', '.join(AXES)}."
        )
    sweep, name = method_sweep(recipe, overrides, [*methods, *more], budget, rates, step, many=yes)
    folder = out or Path("runs") / f"{sweep.name}-methods"
    if json:
        executed(sweep, folder, jobs=jobs)
        write_report([folder], folder / "report.html")
    else:
        run_and_report(sweep, folder, fresh=False, json=False, jobs=jobs)
    rows = compared(folder, sweep, name)
    drawing = folder / "methods.svg"
    write_whole(drawing, quality_against_cost(rows, against))
    if json:
        answer_json({"run": folder, "drawing": drawing, "methods": rows})
        return
    console = stdout_console()
    console.print()
    console.print(_table(rows, console.width), highlight=False)
    typer.echo(f"\nquality against cost: {drawing}")


WIDE = 120
"""Columns from which the whole cost record is shown; on a narrower terminal it would crush the numbers."""


def _table(rows: list[dict[str, Any]], width: int) -> Any:
    from rich.table import Table

    told = [_told(row) for row in rows]
    narrow = ("trains", "on disk", "a step")
    shown = [heading for heading in (told[0] if told else {}) if width >= WIDE or heading in narrow]
    tasks = list(rows[0]["tasks"]) if rows else []
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("variant", overflow="fold")
    for heading in (*shown, "mean", *tasks):
        table.add_column(heading, justify="right")
    for row, cost in zip(rows, told, strict=True):
        scores = (row["mean"], *(row["tasks"][task] for task in tasks))
        table.add_row(row["variant"], *(cost[heading] for heading in shown), *(f"{score:.3f}" for score in scores))
    return table


def _told(row: dict[str, Any]) -> dict[str, str]:
    """Return a variant's costs as people read them, by heading."""
    from multitune.recipes.cost import milliseconds, size

    speeds = row["tokens_per_second"] or {}
    unmerged, merged = (f"{speeds[kind]:,.0f}" if speeds.get(kind) else "" for kind in ("unmerged", "merged"))
    return {
        "trains": f"{row['trainable']:,}",
        "share": f"{row['share']:.2%}" if row["share"] is not None else "",
        "on disk": size(row["bytes"]),
        "memory": size(row["peak_bytes"]),
        "a step": milliseconds(row["step_seconds"]),
        "tokens/s": unmerged,
        "merged": merged,
        "training": f"{row['seconds']:.0f} s",
    }
