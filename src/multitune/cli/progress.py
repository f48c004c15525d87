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
