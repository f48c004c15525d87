"""`multitune run`: do what a recipe says, or what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from multitune.recipes.schema import Recipe

Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override any key, as in steps.joint.training.epochs=2.")
]
Json = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/<recipe's name>.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing changes it
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the run folder holds.")] = False,
    json: Json = False,
) -> None:
    """Train and score what a recipe says; finished work is kept, a killed run goes on."""
    from multitune.cli.output import speak
    from multitune.recipes.loading import load_recipe

    speak()
    loaded = load_recipe(recipe, overrides)
    run_and_report(loaded, out or Path("runs") / loaded.name, fresh=fresh, json=json)


def run_and_report(recipe: Recipe, out: Path, *, fresh: bool, json: bool) -> None:
    """Run a recipe, write the report, print the table and where everything lies."""
    import sys

    from multitune.cli.output import answer_json
    from multitune.cli.progress import scoring_progress
    from multitune.recipes.executor import run as execute

    command = " ".join(["multitune", *sys.argv[1:]])
    with scoring_progress() as progress:
        result = execute(recipe, out, fresh=fresh, command=command, progress=progress)
    answer: dict[str, Any] = {
        "run": result.folder,
        "done": result.done,
        "kept": result.kept,
        "seconds": round(result.seconds, 2),
        "models": [str(path.parent) for path in sorted(result.folder.glob("steps/*/model/README.md"))],
    }
    if (result.folder / "scoreboard.parquet").exists():
        answer |= _reported(result.folder, show=not json)
    if json:
        answer_json(answer)
        return
    done = f"{len(result.done)} steps done" if result.done else "nothing to do"
    kept = f", {len(result.kept)} stood already" if result.kept else ""
    typer.echo(f"\n{done}{kept} in {result.seconds:.0f} seconds.")
    for model in answer["models"]:
        typer.echo(f"model:  {model}")
    if "report" in answer:
        typer.echo(f"report: {answer['report']}")


def _reported(folder: Path, *, show: bool) -> dict[str, Any]:
    """Write the page, and print the tables for people."""
    from rich.console import Console

    from multitune.reporting.comparison import answer, compare
    from multitune.reporting.report import write_report
    from multitune.reporting.run_folder import read_run
    from multitune.reporting.terminal import tables

    page = write_report([folder], folder / "report.html")
    if show:
        console = Console()
        for table in tables([folder]):
            console.print()
            console.print(table)
    return {"report": page, "comparisons": answer(compare([read_run(folder)]))}
