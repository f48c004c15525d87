"""`multitune suite`: a folder of Super-NaturalInstructions becomes a file of tasks, some of them held out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from multitune.cli.run import Json


def suite(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="task*.json files, or tasks.jsonl and splits.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of suite.yaml and what it needs.")],
    encoding: Annotated[
        str, typer.Option("--encoding", help="Of the prompts: definition, none (no instruction) or tk-instruct.")
    ] = "definition",
    positive: Annotated[int, typer.Option("--positive", min=0, help="Solved examples in every prompt.")] = 2,
    held_out_category: Annotated[
        list[str], typer.Option("--held-out-category", help="Never trained on; several times.")
    ] = [],  # noqa: B006
    held_out_task: Annotated[
        list[str], typer.Option("--held-out-task", help="Never trained on, others of its category are; several times.")
    ] = [],  # noqa: B006
    seed: Annotated[int, typer.Option("--seed", help="Of the output that is trained on where several are right.")] = 42,
    json: Json = False,
) -> None:
    """Write a folder of Super-NaturalInstructions as a suite: a file of tasks for run, score and other commands."""
    from multitune.cli.output import answer_json, speak
    from multitune.errors import MultituneError, nearest
    from multitune.recipes.suite import SuitePlan, write_suite
    from multitune.tasks.super_natural_instructions import Encoding

    speak()
    known = ["definition", "none", "tk-instruct"]
    if encoding not in known:
        raise MultituneError(
            f"There is no encoding '{encoding}'.{nearest(encoding, known)}",
            f"--encoding {encoding}",
            f"Use one of: {', '.join(known)}.",
        )
    plan = SuitePlan(cast(Encoding, encoding), positive, tuple(held_out_category), tuple(held_out_task), seed)
    answer = write_suite(folder, out, plan)
    if json:
        answer_json(answer)
        return
    held = answer["tasks"] - len(answer["trained"])
    typer.echo(f"Wrote {answer['suite']}: {answer['tasks']} tasks, {held} held out.")
    for name in answer["shared"]:
        typer.echo(f"look at {name}: fewer than 120 instances, so that its splits are the same rows", err=True)
    typer.echo(f"  multitune score tiny --tasks {answer['suite']}")
