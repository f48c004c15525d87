"""`multitune reproduce`: whether a published system's claims hold here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multitune.cli.run import Json


def reproduce(
    which: Annotated[str, typer.Argument(metavar="NN", help="A system's number or name.")],
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="So many seeds: 0, 1, ... Default: what the system says.")
    ] = None,
    scale: Annotated[str, typer.Option("--scale", help="small, or full where the system has it.")] = "small",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. Default: reproductions/<number>-<name>.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a system's arms on the same seeds and judge its claims; finished arms are kept, a killed run goes on."""
    from multitune.cli.output import answer_json, speak
    from multitune.systems import find_system
    from multitune.systems.reproducing import reproduce as run
    from multitune.systems.reproducing import scale_of

    speak()
    system = find_system(which)
    scale_of(system, scale)
    folder = out or Path("reproductions") / system.slug
    # what decides the numbers, told the same way however the command was typed
    command = f"multitune reproduce {system.number} --scale {scale}" + ("" if seeds is None else f" --seeds {seeds}")
    result = run(system, scale, folder, seeds=seeds, command=command, progress=_tell)
    if json:
        answer_json(result | {"out": folder})
        return
    _show(result)
    typer.echo(f"\nresult: {folder / 'result.json'}")


def _tell(what: str, done: int, total: int) -> None:
    print(f"{done}/{total}  {what}", file=sys.stderr, flush=True)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console

    from multitune.systems.pages import duration, interval, number, seeds_told

    styles = {"reproduced": "bold green", "not reproduced": "bold red", "inconclusive": "bold"}
    console = Console(highlight=False)
    for claim in result["claims"]:
        console.print(f"\n{claim['key']}  [{styles[claim['verdict']]}]{claim['verdict']}[/]: {claim['statement']}")
        console.print(f"   {claim['measure']}: mean {number(claim['mean'])}, 95 % interval {interval(claim)}")
        console.print(f"   asked for: {claim['rule']}; {claim['met']} of {seeds_told(result)} reach it")
    console.print(f"\n{seeds_told(result)}, {duration(result)}.")
