"""`multitune transfer`: what training on each task does for every other, and which to train together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multitune.cli.run import Jobs, Json, Overrides

if TYPE_CHECKING:
    from multitune.reporting.transfer import PairGain
    from multitune.scoring.transfer import Transfer


def transfer(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file with one train step.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/<name>-transfer.")] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Train every pair together too, and tell what it gains over alone.")
    ] = False,
    tasks: Annotated[
        list[str], typer.Option("--task", help="Train these alone; give it several times. Others are scored only.")
    ] = [],  # noqa: B006 - typer reads the default
    step: Annotated[str | None, typer.Option("--step", help="The train step, where the recipe has several.")] = None,
    overrides: Overrides = [],  # noqa: B006
    jobs: Jobs = None,
    json: Json = False,
) -> None:
    """Train one model per task, score each on every task, and suggest which tasks to train together."""
    import json as json_format

    from multitune.cli.output import answer_json, plain, speak, stdout_console
    from multitune.cli.run import executed
    from multitune.recipes.run_folder import write_whole
    from multitune.recipes.transfer import steps_of_groups, transfer_plan
    from multitune.reporting.report import write_report
    from multitune.reporting.transfer import answer, read_transfer, write_transfer_page
    from multitune.scoring.task_groups import clustering, group
    from multitune.training.processes import is_main

    speak()
    clustering()  # what groups need is missed before the trainings, not after them
    plan = transfer_plan(recipe, overrides, step=step, tasks=tasks, together=together)
    folder = out or Path("runs") / f"{plan.recipe.name}-transfer"
    trainings = len(plan.alone) + len(plan.together)
    typer.echo(
        f"{trainings} trainings with the settings of '{plan.name}': each task alone for {plan.length}"
        + ("; pairs for twice that." if plan.together else "."),
        err=True,
    )
    executed(plan.recipe, folder, jobs=jobs)
    if not is_main():
        return  # one process answers
    write_report([folder], folder / "report.html")
    found, pairs = read_transfer(folder, plan.alone, plan.columns, plan.together)
    grouping = group(found.rows, found.affinity)
    told = plain(answer(found, pairs, grouping, plan.length, steps_of_groups(plan, grouping.groups)))
    write_whole(folder / "transfer.json", json_format.dumps(told, indent=2, ensure_ascii=False) + "\n")
    page = write_transfer_page(plan.recipe.name, found, pairs, told, folder / "transfer.html")
    if json:
        answer_json({"run": folder, "page": page, **told})
        return
    _tell(stdout_console().print, found, pairs, told)
    typer.echo(f"\npage:   {page}\nnumbers: {folder / 'transfer.json'}")


def _tell(show: Callable[..., None], found: Transfer, pairs: list[PairGain], told: dict[str, Any]) -> None:
    """Print the matrices, the pairs and the suggestion for people."""
    from multitune.cli.output import table_of
    from multitune.reporting.transfer import gain_text, share_text

    gains = {row: [gain_text(one) for one in cells.values()] for row, cells in found.gains.items()}
    shares = {row: [share_text(cells[column]) for column in found.rows] for row, cells in found.shares.items()}
    headings = [f"{task} ({found.metrics[task]})" for task in found.columns]
    show()
    show(table_of("gain over the base, 95 % interval over rows", "trained on", headings, gains))
    show()
    show(table_of("share of the column's own gain", "trained on", list(found.rows), shares))
    if pairs:
        together = {" + ".join(pair.tasks): [gain_text(one) for one in pair.gains.values()] for pair in pairs}
        show()
        show(table_of("pairs together, gain over alone", "trained on", ["the first", "the second"], together))
    typer.echo(f"\n{ADVICE[told['advice']]} {told['reason']}")
    for warning in told["warnings"]:
        typer.echo(f"- {warning}")
    typer.echo(f"\n{told['steps']}", nl=False)


ADVICE = {
    "together": "Train all tasks together.",
    "groups": "Train these groups.",
    "alone": "Train each task alone.",
}
