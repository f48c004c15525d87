"""`multitune learning-curve`: how many examples of a new task are enough, and which model to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multitune.cli.run import Jobs, Json, Overrides, Yes
from multitune.errors import MultituneError

if TYPE_CHECKING:
    from multitune.recipes.learning_curve import LearningCurvePlan
    from multitune.reporting.learning_curve import LearningCurves


def learning_curve(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    tasks: Annotated[list[str], typer.Option("--task", help="A task to be learned; several times for several.")],
    budgets: Annotated[
        str, typer.Option("--budgets", help="Rows to learn from: numbers, shares, all. The smaller begin the larger.")
    ] = "10,100,1000,all",
    starts: Annotated[
        list[str],
        typer.Option("--from", help="A model to start from: base, or a train step. Default: base and the step's."),
    ] = [],  # noqa: B006 - typer reads the default
    step: Annotated[str | None, typer.Option("--step", help="The train step that learns. Default: the last.")] = None,
    together: Annotated[bool, typer.Option("--together", help="Also one model for all of them.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds.")] = 1,
    reach: Annotated[
        float | None,
        typer.Option("--reach", help="The score asked for. Default: the first start's with the largest budget."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/<name>-curve.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be trained, and train nothing.")] = False,
    overrides: Overrides = [],  # noqa: B006
    jobs: Jobs = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Learn tasks from few and many rows, from several starting models, and tell how many examples are enough."""
    import json as json_format

    from multitune.cli.output import answer_json, plain, speak
    from multitune.cli.run import executed
    from multitune.recipes.learning_curve import budgets_of, learning_curve_plan
    from multitune.recipes.run_folder import write_whole
    from multitune.recipes.sweep import MOST_VARIANTS
    from multitune.reporting.learning_curve import answer, read_learning_curves, write_learning_curve_page
    from multitune.training.processes import is_main

    speak()
    plan = learning_curve_plan(
        recipe, overrides, tasks=tasks, budgets=budgets_of(budgets), step=step, starts=starts, together=together,
        seeds=seeds,
    )  # fmt: skip
    _announce(plan)
    if dry_run:
        _tell_plan(plan, json=json)
        return
    if plan.trainings > MOST_VARIANTS and not yes:
        raise MultituneError(
            f"That is {plan.trainings} trainings; more than {MOST_VARIANTS} need your word.",
            "--yes",
            "Say --yes, or ask for less: fewer --budgets, --task or --seeds.",
        )
    folder = out or Path("runs") / f"{plan.sweep.name}-curve"
    executed(plan.sweep, folder, jobs=jobs)
    if not is_main():
        return  # one process answers
    found = read_learning_curves(plan, folder, reach=reach)
    told = plain(answer(plan, found))
    write_whole(folder / "learning_curve.json", json_format.dumps(told, indent=2, ensure_ascii=False) + "\n")
    page = write_learning_curve_page(plan.sweep.name, plan, found, folder / "learning_curve.html")
    if json:
        answer_json({"run": folder, "page": page, **told})
        return
    _tell(found, told["sentences"])
    typer.echo(f"\npage:    {page}\nnumbers: {folder / 'learning_curve.json'}")


def _announce(plan: LearningCurvePlan) -> None:
    told = ", ".join(curve.label for curve in plan.curves)
    typer.echo(f"{plan.trainings} trainings with the settings of '{plan.name}', from {told}.", err=True)
    for note in plan.notes:
        typer.echo(f"- {note}", err=True)


def _tell_plan(plan: LearningCurvePlan, *, json: bool) -> None:
    """Print the rows of every target at every budget."""
    from multitune.cli.output import answer_json, stdout_console, table_of

    rows = {task: {budget.name: budget.of(n) for budget in plan.budgets} for task, n in plan.targets.items()}
    if json:
        curves = [curve.label for curve in plan.curves]
        answer_json({"trainings": plan.trainings, "curves": curves, "rows": rows, "notes": plan.notes})
        return
    cells = {task: [f"{count:,}" for count in counts.values()] for task, counts in rows.items()}
    stdout_console().print(table_of("rows", "task", [budget.name for budget in plan.budgets], cells))


def _tell(found: LearningCurves, sentences: list[str]) -> None:
    """Print the mean curves, the examples that every task needs, and the answer."""
    from multitune.cli.output import stdout_console, table_of

    show = stdout_console().print
    means = {one.label: [f"{point.value:.3f}" for point in one.points] for one in found.curves}
    show()
    show(table_of("mean over the tasks", "start", [point.budget for point in found.curves[0].points], means))
    needed = {
        task: [
            "not reached" if one.by_task[task] is None else f"{round(one.by_task[task] or 0):,}" for one in found.curves
        ]
        for task in found.metrics
    }
    show()
    show(table_of(f"examples to reach {found.told}", "task", [one.label for one in found.curves], needed))
    typer.echo()
    for sentence in sentences:
        typer.echo(sentence)
