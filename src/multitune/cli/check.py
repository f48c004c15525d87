"""`multitune check`: the plan before the bill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multitune.cli.run import Json, Overrides


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing changes it
    json: Json = False,
) -> None:
    """Tell every mistake in a recipe at once, then what it would read, train and cost; loads no weights."""
    from multitune.cli.output import answer_json, speak
    from multitune.recipes.loading import load_recipe

    speak()
    loaded = load_recipe(recipe, overrides)
    from multitune.recipes.plan import plan

    planned = plan(loaded)
    if json:
        answer_json(planned)
        return
    from rich.console import Console

    from multitune.reporting.plan import show_plan

    show_plan(planned, Console())
