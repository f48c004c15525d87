"""The plan of a recipe for a terminal: what every train step will read, train and cost, and one example per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from multitune.reporting.charts import short
from multitune.reporting.facts import duration
from multitune.weights.learned.step_config import LEARNED_METHODS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from multitune.recipes.fuse_plan import FuseNodePlan
    from multitune.recipes.merge_plan import MergeNodePlan
    from multitune.recipes.plan import NodePlan, Plan, TaskInPlan
    from multitune.recipes.sweep_plan import SweepPlan
    from multitune.recipes.table_plan import TableNodePlan

SHOWN_TOKENS = 160
SHOWN_COLUMNS = 12

LEGEND = (
    "used: rows that will be seen at least once; repeats: how often each is seen; carry loss: share of the tokens that "
    "the loss counts;\ncut: rows truncated or dropped at max_length; drawn: share of the examples; effective: share of "
    "the loss that sampling, weights and normaliser give; ~ estimated from a sample"
)


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan: one table per step; a step that trains each task alone is one table too."""
    from rich.markup import escape

    for name, members in groupby(plan.nodes, key=_step_name):
        nodes = list(members)
        console.print()
        for line in _heading(name, nodes):
            console.print(line, highlight=False)
        console.print(_table(nodes))
        for node in nodes:
            for warning in node.warnings:
                console.print(f"  [yellow]warning:[/yellow] {escape(warning)}", highlight=False)
    for merge in plan.merges:
        console.print()
        for line in _merge_lines(merge):
            console.print(line, highlight=False)
    for fusion in plan.fusions:
        console.print()
        for line in _fusion_lines(fusion):
            console.print(line, highlight=False)
    for table in plan.tables:
        console.print()
        for line in _table_lines(table):
            console.print(line, highlight=False)
    if not plan.nodes:
        return
    console.print(f"\n[dim]{LEGEND}[/dim]", highlight=False)
    console.print("\n[bold]One example per task[/bold], [reverse]what carries loss[/reverse] marked", highlight=False)
    for task, tokens in plan.samples.items():
        console.print(f"\n[bold]{task}[/bold]")
        console.print(marked(tokens))


def show_sweep_plan(plan: SweepPlan, console: Console) -> None:
    """Print a sweep's plan: variants, what they share, every training in a line, and the first variant in full."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"\n[bold]{escape(plan.trained.recipe)}[/bold]: {len(plan.variants)} variants", highlight=False)
    for name in plan.variants:
        console.print(f"  {escape(name)}", highlight=False)
    console.print(
        f"\n{plan.nodes} trainings and scorings in all, {plan.shared} of them shared: {plan.nodes - plan.shared} to "
        f"do; about {duration(plan.seconds)} of training on this machine",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("training", overflow="fold")
    for name in ("steps", "tokens", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in plan.trained.nodes:
        tokens = short(float(sum(task.tokens for task in node.tasks)))
        memory = f"{node.memory_bytes / 2**30:.2f} GiB"
        table.add_row(escape(node.name), f"{node.steps:,}", tokens, memory, duration(node.seconds))
    console.print(table)
    console.print(f"\n[bold]The first variant, {escape(plan.variants[0])}[/bold]", highlight=False)
    first = [replace(n, name=n.name.partition(" (")[0]) for n in plan.trained.nodes if n.name in plan.first]
    show_plan(replace(plan.trained, nodes=first), console)


def _step_name(node: NodePlan) -> str:
    """Return the step of a node: nodes of one task each, "alone.sst2" and so on, belong together."""
    step, _, task = node.name.partition(".")
    return step if task and [one.task for one in node.tasks] == [task] else node.name


def _heading(name: str, nodes: Sequence[NodePlan]) -> Iterator[str]:
    from rich.markup import escape

    first = nodes[0]
    alone = f", {len(nodes)} models of one task each" if len(nodes) > 1 else ""
    yield f"[bold]{name}[/bold]: {first.method} on {escape(first.model)}{alone}"
    yield f"  trainable parameters  {_trainable(first)}"
    fills = [node.fill for node in nodes]
    filled = "of the rows' padded width filled" if first.form == "encoder" else "pack fill"
    span = f"{_span(fills)} {filled}" if first.form == "encoder" else f"{filled} {_span(fills)}"
    yield f"  optimiser steps       {sum(node.steps for node in nodes):,}, {span}"
    memory, seconds = max(node.memory_bytes for node in nodes), sum(node.seconds for node in nodes)
    time = f"{duration(seconds)} on this machine (scoring comes on top)"
    yield f"  forecast              {memory / 2**30:.2f} GiB of memory, about {time}"


def _merge_lines(merge: MergeNodePlan) -> Iterator[str]:
    from rich.markup import escape

    yield f"[bold]{escape(merge.name)}[/bold]: merges {merge.models} models by {merge.method}"
    if merge.candidates:
        yield f"  candidates            {merge.candidates}, compared on validation rows"
    read, written = merge.bytes_to_read / 1e9, merge.bytes_to_write / 1e9
    time = duration(merge.seconds)
    learned = ", and what is learned from rows before that" if merge.method in LEARNED_METHODS else ""
    yield f"  forecast              reads at most {read:.2f} GB, writes {written:.2f} GB, about {time}{learned}"


def _fusion_lines(fusion: FuseNodePlan) -> Iterator[str]:
    from rich.markup import escape

    experts = f"{fusion.experts} experts lead" if fusion.experts > 1 else "1 expert leads"
    yield f"[bold]{escape(fusion.name)}[/bold]: {experts} {escape(fusion.large)}, alpha {fusion.alpha}"
    ratio = fusion.parameters / fusion.large_parameters
    yield f"  weights in memory     {fusion.bytes / 1e9:.2f} GB"
    yield f"  parameters per token  {short(fusion.parameters)}, {ratio:.2f} times those of the large model"


def _table_lines(table: TableNodePlan) -> Iterator[str]:
    from rich.markup import escape

    groups = f", whose rows a column tells apart as {table.groups:,} tasks" if table.groups else ""
    count = f"{len(table.tasks)} task{'s' * (len(table.tasks) > 1)}"
    yield f"[bold]{escape(table.name)}[/bold]: {table.estimator} on {count} of the recipe{groups}"
    for told, names in (("numbers", table.numeric), ("words", table.categorical)):
        if names:
            more = " ..." * (len(names) > SHOWN_COLUMNS)
            yield f"  columns of {told:<11}{len(names)}: {escape(', '.join(names[:SHOWN_COLUMNS]))}{more}"
    for task in table.tasks:
        yield f"  {escape(task.task)}: {task.rows:,} rows, target {escape(task.target)}, {escape(task.answers)}"
    for warning in table.warnings:
        yield f"  [yellow]warning:[/yellow] {escape(warning)}"


def _trainable(node: NodePlan) -> str:
    if node.trainable is None:
        return f"of {node.parameters:,}: known only once the weights are loaded"
    return f"{node.trainable:,} of {node.parameters:,} ({node.trainable / node.parameters:.2%})"


def _span(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"


def _table(nodes: Sequence[NodePlan]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("  task", overflow="ellipsis", no_wrap=True, min_width=14)
    tasks = [task for node in nodes for task in node.tasks]
    bad = any(task.bad_rows for task in tasks)
    loss = any(node.form != "encoder" for node in nodes)  # a head has one loss per row, whatever its tokens
    names = [
        "rows",
        "used",
        "repeats",
        "tokens",
        *(["carry\nloss"] * loss),
        "cut",
        *(["bad"] * bad),
        "drawn",
        "effec-\ntive",
    ]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for task in tasks:
        table.add_row(f"  {task.task}", *_cells(task, loss=loss, bad=bad))
    return table


def _cells(task: TaskInPlan, *, loss: bool, bad: bool) -> Iterator[str]:
    about = "~" if task.estimated else ""
    yield f"{task.rows:,}"
    yield f"{task.unique_rows:,}"
    yield f"{task.repeats:.2f}"
    yield about + short(float(task.tokens))
    if loss:
        yield f"{task.loss_share:.0%}"
    yield f"{about}{task.truncated + task.dropped:,}"
    if bad:
        yield f"{task.bad_rows:,}"
    yield f"{task.sampling_share:.1%}"
    yield f"{task.effective_share:.1%}"


def marked(tokens: Sequence[tuple[str, bool]]) -> Text:
    """Return an example's text with the tokens that carry loss marked; a long one loses its beginning."""
    from rich.text import Text

    text = Text()
    cut = len(tokens) - SHOWN_TOKENS
    if cut > 0:
        text.append(f"({cut} tokens) ... ", style="dim")
    for token, carries_loss in tokens[max(0, cut) :]:
        text.append(token, style="black on green" if carries_loss else "dim")
    return text
