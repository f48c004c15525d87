"""`multitune merge`: several models of one base into one, from files to files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multitune.cli.run import Json

if TYPE_CHECKING:
    from multitune.weights.config import MergeConfig
    from multitune.weights.planning import MergePlan


def merge(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The merge, a YAML file of ours or of mergekit.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder of the result; absent or empty.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="The method, in place of a file.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="What all models were tuned from.")] = None,
    models: Annotated[
        list[str], typer.Option("--model", "--models", help="A model that is merged; give it several times.")
    ] = [],  # noqa: B006 - typer reads the default, nothing changes it
    more: Annotated[list[Path], typer.Argument(hidden=True)] = [],  # noqa: B006
    assignments: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the method, or lines.beta and such.")
    ] = [],  # noqa: B006
    sweep: Annotated[
        list[str], typer.Option("--sweep", metavar="KEY=[...]", help="Compare values on --tasks; write the best.")
    ] = [],  # noqa: B006
    tasks: Annotated[Path | None, typer.Option("--tasks", help="A recipe or suite file, for --sweep.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="At most so many validation rows per task.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Tell bytes, time and memory; write nothing.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Tell every tensor's parameters; write nothing.")] = False,
    json: Json = False,
) -> None:
    """Merge models of one base into one that transformers loads.

    `multitune merge FILE.yaml --out DIR`, or `multitune merge --method ties --base B --models A1 A2 A3 --out DIR`.
    """
    from multitune.cli.output import answer_json, speak
    from multitune.recipes.merge_file import merge_of_words, read_merge

    speak()
    if models and file is not None:  # --models A B C: B and C come as arguments
        models, file, more = [*models, str(file), *map(str, more)], None, []
    _refuse_unused(file, method, base, models, more, tasks, sweep)
    _refuse_beside(plan or explain, sweep, rows)
    config = read_merge(file, assignments) if file is not None else merge_of_words(method, base, models, assignments)
    if plan or explain:
        from multitune.weights.planning import plan_merge

        told = plan_merge(config)
        if json:
            answer_json(told if explain else {k: v for k, v in _plain(told).items() if k != "parameters"})
        elif explain:
            _print_parameters(config, told)
        else:
            _print_plan(config, told)
        return
    if out is None:
        from multitune.errors import MultituneError

        raise MultituneError(
            "There is no folder for the result.", "--out", "Add --out DIR, or --plan to write nothing."
        )
    answer = _merged(config, out, sweep, tasks, rows)
    if json:
        answer_json(answer)
        return
    for line in _summary(answer):
        typer.echo(line)


def _refuse_unused(
    file: Path | None,
    method: str | None,
    base: str | None,
    models: list[str],
    more: list[Path],
    tasks: Path | None,
    sweep: list[str],
) -> None:
    """Refuse options that would have no effect.

    Raises:
        MultituneError: a file beside --method, arguments too many, a sweep without tasks or tasks without a sweep.
    """
    from multitune.errors import MultituneError

    if file is not None and (method or base or models):
        raise MultituneError(
            "A file says what is merged, and so do --method, --base and --models.",
            str(file),
            "Give the file alone, with --set for single values, or the options alone.",
        )
    if more:
        raise MultituneError(f"'{more[0]}' is one file too many.", "multitune merge", "Merge one file at a time.")
    if bool(sweep) != bool(tasks):
        lacking = "--tasks" if sweep else "--sweep"
        raise MultituneError(
            f"A sweep compares values on the validation rows of tasks, and {lacking} is missing.",
            lacking,
            "Give both: --sweep 'lambda=[0.1, 0.3]' --tasks recipe.yaml.",
        )


def _refuse_beside(told_only: bool, sweep: list[str], rows: int | None) -> None:
    """Refuse options that another one leaves without effect.

    Raises:
        MultituneError: a sweep beside --plan or --explain, rows without a sweep.
    """
    from multitune.errors import MultituneError

    if told_only and sweep:
        raise MultituneError(
            "--plan and --explain tell of one merge, and --sweep compares several.",
            "--sweep",
            "Leave it out, or give the value with --set.",
        )
    if rows is not None and not sweep:
        raise MultituneError("--rows limits the rows of a sweep, and there is none.", "--rows", "Add --sweep.")


def _merged(config: MergeConfig, out: Path, sweep: list[str], tasks: Path | None, rows: int | None) -> dict[str, Any]:
    """Merge, after a sweep if one is asked for, and return what is answered."""
    from multitune.cli.progress import merging_progress
    from multitune.recipes.merging import merge_with_heads

    answer: dict[str, Any] = {}
    if tasks is not None:
        from multitune.recipes.merge_file import sweep_merge
        from multitune.reporting.report import write_search_page
        from multitune.weights.writing import check_target

        check_target(out, [])  # before hours of scoring
        config, told = sweep_merge(config, sweep, tasks, rows, out)
        page = write_search_page(out.name, told, out.with_name(f"{out.name}-search") / "search.html")
        answer = {"best": told["best"], "candidates": [_candidate(one) for one in told["candidates"]], "search": page}
    with merging_progress() as progress:
        report = merge_with_heads(config, out, progress=progress)
    done = _plain(report)
    del done["parameters"]
    return {"method": config.method, **done, **_plain(answer)}


def _candidate(one: dict[str, Any]) -> dict[str, Any]:
    """Return what a candidate reached: the mean, and every task's first metric."""
    tasks: dict[str, float] = {}
    for row in one["rows"]:
        tasks.setdefault(row["task"], row["value"])
    return {"name": one["name"], "values": one["values"], "quality": one["quality"], "tasks": tasks}


def _plain(value: Any) -> dict[str, Any]:
    from multitune.cli.output import plain

    return dict(plain(value))


def _summary(answer: dict[str, Any]) -> list[str]:
    lines = []
    if candidates := answer.get("candidates"):
        tasks = list(candidates[0]["tasks"])
        lines = [f"  {'candidate, on validation rows':<40} {'mean':>7}" + "".join(f"  {task:>7}" for task in tasks)]
        for one in candidates:
            scores = "".join(f"  {one['tasks'][task]:>{max(7, len(task))}.4f}" for task in tasks)
            lines.append(f"  {one['name']:<40} {one['quality']:>7.4f}{scores}")
        lines += [f"best: {answer['best']}; every candidate: {answer['search']}", ""]
    read, written = answer["bytes_read"] / 1e9, answer["bytes_written"] / 1e9
    lines.append(
        f"{answer['out']}: {answer['tensors']:,} tensors by {answer['method']}, read {read:.2f} GB, wrote "
        f"{written:.2f} GB in {answer['seconds']:.1f} s ({answer['process_seconds']:.1f} s of processor time), at most "
        f"{answer['peak_bytes'] / 2**20:,.0f} MiB of memory"
    )
    if answer["lines_alpha"] is not None:
        lines.append(f"LiNeS' alpha: {answer['lines_alpha']:.4g}")
    return [*lines, *_left_out(answer["left_out"])]


def _left_out(tensors: dict[str, str]) -> list[str]:
    return [f"left out: {name} ({reason})" for name, reason in tensors.items()]


def _print_plan(config: MergeConfig, told: MergePlan) -> None:
    typer.echo(
        f"{config.method}: {told.tensors:,} tensors, {told.merged:,} of them merged\n"
        f"reads {told.bytes_to_read / 1e9:.2f} GB, writes {told.bytes_to_write / 1e9:.2f} GB, in about "
        f"{told.passes:g} pass{'es' * (told.passes != 1)} over the models\n"
        f"forecast: {told.seconds:.0f} s, {told.peak_bytes / 2**20:,.0f} MiB of memory beside the mapped files"
    )
    for line in _left_out(told.left_out):
        typer.echo(line)


def _print_parameters(config: MergeConfig, told: MergePlan) -> None:
    """Print a table: tensors down, each model's and the merge's parameters across."""
    from rich.console import Console
    from rich.table import Table

    names = [Path(each.model).name for each in config.models]
    parameters = next(iter(told.parameters.values()), {})
    table = Table(box=None, padding=(0, 1))
    table.add_column("tensor", overflow="fold")
    for name, value in parameters.items():
        heading = f"{name}\n({', '.join(names)})" if isinstance(value, list) and names else name
        table.add_column(heading, justify="right")
    for tensor, values in told.parameters.items():
        table.add_row(tensor, *(_shown(values[name]) for name in parameters))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    for line in _left_out(told.left_out):
        typer.echo(line)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
