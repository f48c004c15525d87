"""`multitune cocktail`: which mixture helps a task, what each ingredient adds, and whether it is more than length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multitune.cli.run import Jobs, Json, Overrides, Yes
from multitune.errors import MultituneError

if TYPE_CHECKING:
    from multitune.recipes.cocktail import Budget, Choice, CocktailPlan
    from multitune.reporting.cocktail import Study


def cocktail(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file with one train step.")],
    targets: Annotated[
        list[str], typer.Option("--target", help="The task whose best mixture is asked for; several times for several.")
    ],
    tasks: Annotated[
        list[str], typer.Option("--task", help="The ingredients; default: the step's tasks. Others are scored only.")
    ] = [],  # noqa: B006 - typer reads the default
    cocktails: Annotated[
        str | None,
        typer.Option(
            "--cocktails",
            metavar="all|usual|NUMBER",
            help="Mixtures with a target that are trained: all subsets; the usual ones (pairs, all but one, all); so "
            "many drawn at random beside pairs and all. Default: all, of at most 16.",
        ),
    ] = None,
    budget: Annotated[
        Literal["both", "additive", "fixed"],
        typer.Option(help="Each source as long as alone, all cocktails the same answer tokens, or both."),
    ] = "both",
    cap: Annotated[int | None, typer.Option("--cap", min=1, help="Rows beyond which a source does not count.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds.")] = 3,
    control: Annotated[
        bool, typer.Option(help="Train each target alone as often as there are cocktails to choose from.")
    ] = True,
    step: Annotated[str | None, typer.Option("--step", help="The train step, where the recipe has several.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder. Default: runs/<name>-cocktail.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be trained, and train nothing.")] = False,
    overrides: Overrides = [],  # noqa: B006
    jobs: Jobs = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Train mixtures of tasks under equal conditions, choose one on validation rows, and tell what it gains."""
    import json as json_format

    from multitune.cli.output import answer_json, plain, speak
    from multitune.cli.run import executed
    from multitune.recipes.cocktail import cocktail_plan
    from multitune.recipes.run_folder import write_whole
    from multitune.reporting.cocktail import answer, read_studies, write_cocktail_page
    from multitune.training.processes import is_main

    speak()
    budgets: tuple[Budget, ...] = ("additive", "fixed") if budget == "both" else (budget,)
    plan = cocktail_plan(
        recipe, overrides, targets=targets, step=step, tasks=tasks, cocktails=_choice(cocktails), budgets=budgets,
        cap=cap, seeds=seeds, control=control,
    )  # fmt: skip
    _announce(plan)
    if dry_run:
        _tell_plan(plan, json=json)
        return
    _refuse_many(plan, yes=yes)
    folder = out or Path("runs") / f"{plan.sweep.name}-cocktail"
    executed(plan.sweep, folder, jobs=jobs)
    if not is_main():
        return  # one process answers
    studies = read_studies(plan, folder)
    told = plain(answer(plan, studies))
    write_whole(folder / "cocktail.json", json_format.dumps(told, indent=2, ensure_ascii=False) + "\n")
    page = write_cocktail_page(plan.sweep.name, plan, studies, folder / "cocktail.html")
    if json:
        answer_json({"run": folder, "page": page, **told})
        return
    _tell(studies, told["warnings"])
    typer.echo(f"\npage:    {page}\nnumbers: {folder / 'cocktail.json'}")


def _choice(given: str | None) -> Choice | None:
    if given is None or given == "all" or given == "usual":
        return given  # type: ignore[return-value]
    if given.isdecimal():
        return int(given)
    raise MultituneError(f"'{given}' names no set of cocktails.", "--cocktails", "Say all, usual, or a number.")


def _announce(plan: CocktailPlan) -> None:
    from multitune.scoring.cocktails import cocktail_name

    of = {target: len(tried) for target, tried in plan.tried.items()}
    told = ", ".join(f"{count} cocktails with {target}" for target, count in of.items())
    control = f", and {len(plan.control_seeds)} seeds of the targets alone" if plan.control_seeds else ""
    typer.echo(
        f"{plan.trainings} trainings with the settings of '{plan.name}' on {cocktail_name(frozenset(plan.sources))}: "
        f"{told}, {len(plan.seeds)} seeds{control}.",
        err=True,
    )
    for warning in plan.warnings:
        typer.echo(f"- {warning}", err=True)


def _refuse_many(plan: CocktailPlan, *, yes: bool) -> None:
    from multitune.recipes.sweep import MOST_VARIANTS

    if plan.trainings > MOST_VARIANTS and not yes:
        raise MultituneError(
            f"That is {plan.trainings} trainings; more than {MOST_VARIANTS} need your word.",
            "--yes",
            "Say --yes, or ask for less: --cocktails usual, --seeds 2, --no-control. --dry-run lists them.",
        )


def _tell_plan(plan: CocktailPlan, *, json: bool) -> None:
    """Print every arm with what it draws."""
    from multitune.cli.output import answer_json, stdout_console, table_of

    arms = {arm.label: {name: round(count, 1) for name, count in plan.draws[arm].items()} for arm in plan.arms}
    if json:
        answer_json({"trainings": plan.trainings, "seeds": plan.seeds, "examples": arms, "warnings": plan.warnings})
        return
    rows = {label: [str(draws.get(name, "")) for name in plan.sources] for label, draws in arms.items()}
    stdout_console().print(table_of("examples of every source", "arm", list(plan.sources), rows))


def _tell(studies: list[Study], warnings: list[str]) -> None:
    """Print the effects, the best cocktails and the advice."""
    from multitune.cli.output import stdout_console, table_of
    from multitune.reporting.report import signed_text

    def with_interval(one: Any) -> str:
        return f"{signed_text(one.value)} [{signed_text(one.low)}, {signed_text(one.high)}]"

    show = stdout_console().print
    for study in studies:
        effects = {name: [with_interval(one)] for name, one in study.effects.items()}
        rows = {
            one.name + (" *" if one is study.selected else ""): [
                f"{one.validation:.3f}", f"{one.test:.3f}", with_interval(one.gain)
            ]
            for one in (*study.tried, *((study.longer,) if study.longer else ()))
        }  # fmt: skip
        show()
        show(table_of(f"{study.target}, {study.budget}", "cocktail", ["validation", "test", "gain over alone"], rows))
        show()
        show(table_of(f"effects ({study.kind})", "ingredient", ["effect"], effects))
        typer.echo(f"\n{study.advice}")
    for warning in warnings:
        typer.echo(f"- {warning}")
