"""`multitune quickstart`: the main job on the embedded base, to look at in a minute and a half."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multitune.cli.run import Json, Overrides, run_and_report


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("runs/quickstart"),
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing changes it
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the run folder holds.")] = False,
    json: Json = False,
) -> None:
    """Adapt the embedded base to six tasks at once and show what each task gained, and what three others lost."""
    from importlib.resources import as_file, files

    from multitune.cli.output import speak
    from multitune.recipes.loading import load

    speak()
    with as_file(files("multitune.recipes") / "shipped" / "quickstart.yaml") as path:
        recipe = load(path, overrides)
    run_and_report(recipe, out, fresh=fresh, json=json)
    if not json:
        typer.echo("\nYour own data: multitune init FILES... writes a recipe, multitune run trains on it.")
