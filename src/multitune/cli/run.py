"""`multitune run`: do what a recipe says, or what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from multitune.recipes.executor import RunResult
    from multitune.recipes.schema import Recipe
    from multitune.recipes.sweep import Sweep

Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override any key, as in steps.joint.training.epochs=2.")
]
Json = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Steps that run at once, each in a process with its share of the cores."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Run steps on a Ray cluster: host:port, auto, or local to start one."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Let a sweep expand to more than 24 runs.")]


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/<recipe's name>.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing changes it
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the run folder holds.")] = False,
    jobs: Jobs = None,
    ray: Ray = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Train and score what a recipe says; finished work is kept, a killed run goes on."""
    from multitune.cli.output import speak
    from multitune.recipes.loading import load

    speak()
    loaded = load(recipe, overrides, many=yes)
    run_and_report(loaded, out or Path("runs") / loaded.name, fresh=fresh, jobs=jobs, ray=ray, json=json)


def run_and_report(
    recipe: Recipe | Sweep, out: Path, *, fresh: bool, json: bool, jobs: int | None = None, ray: str | None = None
) -> None:
    """Run a recipe or a sweep, write the report, print the tables and where everything lies."""
    from multitune.cli.output import answer_json
    from multitune.recipes.failures import NodesFailed
    from multitune.recipes.schema import Recipe
    from multitune.training.processes import is_main

    try:
        result = executed(recipe, out, fresh=fresh, jobs=jobs, ray=ray)
    except NodesFailed:
        if (out / "scoreboard.parquet").exists():  # what is done can be looked at
            _reported(out, show=not json)
        raise
    if not is_main():
        return  # one process answers
    answer: dict[str, Any] = {
        "run": result.folder,
        "done": result.done,
        "kept": result.kept,
        "seconds": round(result.seconds, 2),
        "models": [str(path.parent) for path in sorted(result.folder.glob(_models(recipe)))],
    }
    if (result.folder / "scoreboard.parquet").exists():
        answer |= _reported(result.folder, show=not json)
    if json:
        answer_json(answer)
        return
    done = f"{len(result.done)} steps done" if result.done else "nothing to do"
    kept = f", {len(result.kept)} stood already" if result.kept else ""
    typer.echo(f"\n{done}{kept} in {result.seconds:.0f} seconds.")
    for model in answer["models"] if isinstance(recipe, Recipe) else []:
        typer.echo(f"model:  {model}")
    if not isinstance(recipe, Recipe):
        typer.echo(f"runs:   {out / 'variants'}, {len(recipe.variants)} of them")
    if "report" in answer:
        typer.echo(f"report: {answer['report']}")


def executed(
    recipe: Recipe | Sweep, out: Path, *, fresh: bool = False, jobs: int | None = None, ray: str | None = None
) -> RunResult:
    """Run a recipe or a sweep; someone's word to stop in the middle of a training names the checkpoint."""
    import sys

    from multitune.cli.failures import Stopped
    from multitune.cli.progress import scoring_progress
    from multitune.recipes.executor import run as execute
    from multitune.training.interrupts import Interrupted

    command = " ".join(["multitune", *sys.argv[1:]])
    try:
        with scoring_progress() as progress:
            return execute(recipe, out, fresh=fresh, command=command, progress=progress, jobs=jobs, ray=ray)
    except Interrupted as stop:
        raise Stopped(str(stop), str(stop.checkpoint or out)) from stop


def _models(recipe: Recipe | Sweep) -> str:
    """Return the pattern that finds the cards of a run's models."""
    from multitune.recipes.schema import Recipe

    return ("" if isinstance(recipe, Recipe) else "variants/*/") + "steps/*/model/README.md"


def _reported(folder: Path, *, show: bool) -> dict[str, Any]:
    """Write the page, and print the tables for people."""
    from multitune.cli.output import stdout_console
    from multitune.reporting.report import write_report
    from multitune.reporting.sweep import answer
    from multitune.reporting.terminal import tables

    page = write_report([folder], folder / "report.html")
    if show:
        console = stdout_console()
        for table in tables([folder]):
            console.print()
            console.print(table)
    return {"report": page, **answer([folder])}
