"""The before/after table at the end of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multitune.reporting.comparison import Difference, TaskRow, compare, key
from multitune.reporting.comparison import Table as Comparison
from multitune.reporting.run_folder import BASE, read_run

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"better": "bold green", "worse": "bold red", "unclear": "dim"}


def tables(runs: Sequence[Path]) -> Iterator[Table]:
    """Yield a printable table of training tasks, and one of held-out tasks where there are some.

    A difference carries a star (and a colour) where its 95 % interval leaves out zero; the report shows the intervals.

    Args:
        runs: run folders with scores.
    """
    for comparison in compare([read_run(run) for run in runs]):
        for table in comparison.tables:
            yield _printable(table)


def _printable(table: Comparison) -> Table:
    from rich.table import Table

    printable = Table(
        title=table.title,
        title_justify="left",
        title_style="bold",
        caption="* the 95 % interval of the difference leaves out zero",
        caption_justify="left",
        box=None,
        padding=(0, 1),
    )
    printable.add_column("task", overflow="fold")
    printable.add_column("metric")
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
        yield _told(difference) if difference is not None else "-"


def _told(difference: Difference) -> str:
    style = STYLES[difference.verdict]
    star = " " if difference.verdict == "unclear" else "*"
    return f"[{style}]{difference.value:+.3f}{star}[/{style}]"
