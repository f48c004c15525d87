"""`multitune check`: the plan before the bill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multitune.cli.run import Json, Overrides, Yes


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nothing changes it
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Tell the mistakes in a recipe (keys, files, rows), then what it would read, train and cost; loads no weights."""
    from multitune.cli.output import answer_json, speak
    from multitune.recipes.loading import load

    speak()
    loaded = load(recipe, overrides, many=yes)
    from multitune.recipes.plan import plan
    from multitune.recipes.schema import Recipe
    from multitune.recipes.sweep_plan import plan_sweep

    planned = plan(loaded) if isinstance(loaded, Recipe) else plan_sweep(loaded)
    if json:
        answer_json(planned)
        return
    from multitune.cli.output import stdout_console
    from multitune.recipes.plan import Plan
    from multitune.reporting.plan import show_plan, show_sweep_plan

    if isinstance(planned, Plan):
        show_plan(planned, stdout_console())
    else:
        show_sweep_plan(planned, stdout_console())
