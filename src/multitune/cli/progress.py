"""A progress bar over scoring, on stderr; silent where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def scoring_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function to call with (task, examples done, examples in all); one bar per task, gone when it is full."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from multitune.cli.output import stderr_console

    console = stderr_console()
    columns = (TextColumn("scoring {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    bars: dict[str, object] = {}

    def report(task: str, done: int, total: int) -> None:
        if not console.is_terminal:
            return
        if task not in bars:
            progress.start()
            bars[task] = progress.add_task(task, total=total)
        progress.update(bars[task], completed=done)  # type: ignore[arg-type]
        if done >= total:
            progress.remove_task(bars.pop(task))  # type: ignore[arg-type]
        if not bars:
            progress.stop()  # training draws its own view in between

    try:
        yield report
    finally:
        progress.stop()


@contextmanager
def merging_progress() -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with (bytes written, bytes in all)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from multitune.cli.output import stderr_console

    console = stderr_console()
    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("merging", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
