"""`multitune report`: the page that tells what runs gained and lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, of sweeps too; runs that differ by seed are averaged."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page. Default: RUN/report.html, or report.html for several runs.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")] = False,
) -> None:
    """Write report.html, one self-contained page, from one or several runs."""
    from multitune.cli.output import answer_json, speak
    from multitune.reporting.report import write_report
    from multitune.reporting.sweep import answer

    speak()
    place = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    written = write_report(runs, place)
    if json:
        answer_json({"report": written, **answer(runs)})
    else:
        typer.echo(f"Wrote {written}")
