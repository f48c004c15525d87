"""The before/after table at the end of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multitune.reporting.comparison import Table as Comparison
from multitune.reporting.comparison import TaskRow, Verdict, compare, key
from multitune.reporting.run_folder import BASE
from multitune.reporting.sweep import EffectTable, effects, is_sweep, read_runs, read_sweep

if TYPE_CHECKING:
    from rich.table import Table

SIDE_BY_SIDE = 3
"""Values of an axis that a line of a terminal has room for, with their differences."""

STYLES = {"better": "bold green", "worse": "bold red", "unclear": "dim"}


def tables(runs: Sequence[Path]) -> Iterator[Table]:
    """Yield a printable table of training tasks, and one of held-out tasks where there are some.

    A difference carries a star (and a colour) where its 95 % interval leaves out zero; the report shows the intervals.
    Of a sweep's folder the tables of what its axes change are yielded; where only the seed varies, its means.

    Args:
        runs: run folders with scores.
    """
    plain = []
    for run in runs:
        if found := effects(read_sweep(run)) if is_sweep(run) else []:
            yield from map(_printable_effects, found)
        else:
            plain.append(run)
    for comparison in compare(read_runs(plain)):
        for table in comparison.tables:
            yield _printable(table)


def _empty(title: str, caption: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    printable = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        box=None,
        padding=(0, 1),
    )
    printable.add_column("task", overflow="fold")
    printable.add_column("metric")
    return printable


def _printable_effects(table: EffectTable) -> Table:
    where = ", ".join([table.arm, *(f"{axis}={value}" for axis, value in table.setting.items())])
    printable = _empty(
        f"{table.axis}: {where} ({table.title.lower()})",
        f"differences from {table.values[0]}, paired by seed; * the 95 % interval leaves out zero, and so does the "
        "bootstrap corrected for the number of differences",
    )
    if len(table.values) > SIDE_BY_SIDE:
        return _with_a_line_per_value(printable, table)
    for name in ("n", *table.values, *(f"{value}\n- {table.values[0]}" for value in table.values[1:])):
        printable.add_column(name, justify="right", no_wrap=True)
    for row in (*table.rows, *table.means):
        scores = [f"{row.scores[value].value:.3f}" for value in table.values]
        differences = [_starred(row.effects[value].mean, row.effects[value].verdict) for value in table.values[1:]]
        style = "italic" if row in table.means else None
        printable.add_row(row.task, row.metric, f"{row.n:,}", *scores, *differences, style=style)
    return printable


def _with_a_line_per_value(printable: Table, table: EffectTable) -> Table:
    """Fill a table in which the values of an axis stand below one another, because a terminal has no room beside."""
    first = table.values[0]
    printable.add_column("n", justify="right")
    printable.add_column(table.axis, no_wrap=True)
    printable.add_column("score", justify="right", no_wrap=True)
    printable.add_column(f"- {first}", justify="right", no_wrap=True)
    for row in (*table.rows, *table.means):
        style = "italic" if row in table.means else None
        for value in table.values:
            head = (row.task, row.metric, f"{row.n:,}") if value == first else ("", "", "")
            effect = "" if value == first else _starred(row.effects[value].mean, row.effects[value].verdict)
            printable.add_row(*head, value, f"{row.scores[value].value:.3f}", effect, style=style)
        printable.add_section()
    return printable


def _printable(table: Comparison) -> Table:
    printable = _empty(table.title, "* the 95 % interval of the difference leaves out zero")
    arms = [_heading(arm) for arm in table.arms]
    contrasts = [f"{contrast.arm}\n- {_heading(contrast.against)}" for contrast in table.contrasts]
    for name in ("n", *arms, *contrasts):
        printable.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        printable.add_row(*_cells(row, table))
    for row in table.means:
        printable.add_row(*_cells(row, table), style="italic")
    return printable


def _heading(arm: str) -> str:
    return "before" if arm == BASE else arm


def _cells(row: TaskRow, table: Comparison) -> Iterator[str]:
    yield row.task
    yield row.metric
    yield f"{row.n:,}"
    for arm in table.arms:
        yield f"{row.scores[arm].value:.3f}" if arm in row.scores else "-"
    for contrast in table.contrasts:
        difference = row.differences.get(key(contrast))
        yield _starred(difference.value, difference.verdict) if difference is not None else "-"


def _starred(value: float, verdict: Verdict) -> str:
    star = " " if verdict == "unclear" else "*"
    return f"[{STYLES[verdict]}]{value:+.3f}{star}[/{STYLES[verdict]}]"
