"""`multitune check`: the plan before the bill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multitune.cli.run import Json, Overrides

if TYPE_CHECKING:
    from rich.console import Console

    from multitune.recipes.plan import NodePlan, Plan

SHOWN_TOKENS = 160


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

    show(planned, Console())


def show(plan: Plan, console: Console) -> None:
    """Print the plan for people."""
    for node in plan.nodes:
        _show_node(node, console)
    console.print("\n[bold]one example per task[/bold]  (what carries loss is [reverse]marked[/reverse])")
    for task, tokens in plan.samples.items():
        console.print(f"\n[bold]{task}[/bold]")
        console.print(_marked(tokens))


def _show_node(node: NodePlan, console: Console) -> None:
    from rich.table import Table

    console.print(f"\n[bold]{node.name}[/bold]: {node.method} on {node.model}")
    trainable = "known only with the weights" if node.trainable is None else f"{node.trainable:,}"
    share = "" if node.trainable is None else f" ({node.trainable / node.parameters:.2%})"
    console.print(f"  parameters that train   {trainable} of {node.parameters:,}{share}")
    console.print(f"  optimiser steps         {node.steps:,}, positions filled {node.fill:.1%}")
    console.print(f"  forecast                {node.memory_bytes / 2**30:.2f} GiB, {_duration(node.seconds)}")
    table = Table(box=None, padding=(0, 1))
    headings = (
        "task", "rows", "used", "repeats", "tokens", "loss on", "cut", "bad", "sampled", "effective",
    )  # fmt: skip
    for name in headings:
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=name != "task", overflow="fold")
    for task in node.tasks:
        about = "~" if task.estimated else ""
        table.add_row(
            task.task,
            f"{task.rows:,}",
            f"{task.unique_rows:,}",
            f"{task.repeats:.2f}",
            f"{about}{task.tokens:,}",
            f"{about}{task.loss_share:.1%}",
            f"{about}{task.truncated + task.dropped:,}",
            f"{task.bad_rows:,}",
            f"{task.sampling_share:.1%}",
            f"{task.effective_share:.1%}",
        )
    console.print(table)
    for warning in node.warnings:
        console.print(f"  [yellow]warning:[/yellow] {warning}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"about {seconds:.0f} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 7200 else f"about {seconds / 3600:.1f} hours"


def _marked(tokens: list[tuple[str, bool]]) -> object:
    from rich.text import Text

    text = Text()
    cut = len(tokens) - SHOWN_TOKENS
    if cut > 0:
        text.append(f"({cut} tokens) ... ", style="dim")
    for token, carries_loss in tokens[max(0, cut) :]:
        text.append(token, style="black on green" if carries_loss else "dim")
    return text
