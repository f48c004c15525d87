"""`multitune init`: look at data files and write a commented recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Data files or folders, one task each.")],
    out: Annotated[Path, typer.Option("--out", help="Where the recipe is written.")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option("--model", help="The model to adapt: a hub id, a folder, or tiny.")] = "tiny",
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")] = False,
) -> None:
    """Look at data files and write a commented recipe that trains on them."""
    from multitune.cli.output import answer_json, speak
    from multitune.errors import MultituneError
    from multitune.recipes.init import draft_recipe
    from multitune.recipes.run_folder import disk_error, write_whole

    speak()
    if out.exists() and not force:
        raise MultituneError(
            f"{out} exists already.",
            str(out),
            "Choose another name with --out, move the file away, or write over it with --force.",
        )
    try:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)  # the recipe's paths are relative to it
    except OSError as error:
        raise disk_error(error, out) from error
    draft = draft_recipe(files, out, model)
    write_whole(out, draft.text)
    if json:
        answer_json({"recipe": out, "text": draft.text, "open": draft.open, "remarks": draft.remarks})
        return
    for remark in draft.remarks:
        typer.echo(f"look at {remark}", err=True)
    if draft.open:
        typer.echo(f"Wrote {out}. Fill in prompt and target of {', '.join(draft.open)}, then:\n  multitune check {out}")
    else:
        typer.echo(f"Wrote {out}. Look it over, then:\n  multitune check {out}\n  multitune run {out}")
