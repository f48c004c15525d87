"""`multitune init`: look at data files and write a commented recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Data files or folders, one task each.")],
    out: Annotated[Path, typer.Option("--out", help="Where the recipe is written.")] = Path("recipe.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")] = False,
) -> None:
    """Look at data files and write a commented recipe that trains on them."""
    from multitune.cli.output import answer_json, speak
    from multitune.errors import MultituneError
    from multitune.recipes.init import draft_recipe
    from multitune.recipes.run_folder import write_whole

    speak()
    if out.exists():
        raise MultituneError(
            f"{out} exists already and a recipe is never written over.",
            str(out),
            "Choose another name with --out, or move the file away.",
        )
    if not out.resolve().parent.is_dir():  # the recipe's paths are relative to it
        raise MultituneError(
            "The folder for the recipe does not exist.",
            str(out.resolve().parent),
            "Make the folder first, or choose another place with --out.",
        )
    text = draft_recipe(files, out)
    write_whole(out, text)
    if json:
        answer_json({"recipe": out, "text": text})
    else:
        typer.echo(f"Wrote {out}. Look it over, then:\n  multitune check {out}\n  multitune run {out}")
