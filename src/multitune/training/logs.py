"""The JSON-lines log that every training leaves, and the live view of it in a terminal."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class JsonLinesLog:
    """Appends one JSON object per line; opened at a step, it first drops the lines after that step.

    A run that was killed after logging step 90 and goes on from the checkpoint of step 80 would otherwise hold the
    steps 81-90 twice.

    Args:
        path: the file; created with its folder.
        step: the last step whose lines are kept.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)

    def records(self) -> list[dict[str, Any]]:
        """Return what was written so far."""
        return [json.loads(line) for line in _whole_lines(self.path)]

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; numbers that are not finite become null, as JSON has no other word for them."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record)) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Return the lines that were written to their end; the last one may have been cut short by a kill."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.endswith("\n")]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def log_console() -> Console:
    """Return the console on which multitune's log is shown, so that its lines do not tear the live view; else stderr.

    Stdout stays for answers.
    """
    for handler in logging.getLogger("multitune").handlers:
        if isinstance(handler, RichHandler):
            return handler.console
    return Console(file=sys.stderr)


class LiveView(TrainerCallback):
    """Progress, tokens per second, time left and the loss of every task, redrawn in place.

    Without a terminal (a file, a pipe, CI) it prints one line per log record instead.

    Args:
        title: the step's name.
        console: where to draw; default that of the log.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.console = console or log_console()
        self.progress = Progress(
            TextColumn(f"[bold]{title}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.bar = self.progress.add_task(title, total=None, speed="")
        self.live: Live | None = None
        self.first_loss: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the view."""
        self.progress.update(self.bar, total=state.max_steps, completed=state.global_step)
        if self.console.is_terminal:
            self.live = Live(self.progress, console=self.console, refresh_per_second=4, transient=False)
            self.live.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        self.progress.update(self.bar, completed=state.global_step)

    def show(self, record: Mapping[str, Any]) -> None:
        """Show one log record."""
        speed = f"{record['tokens_per_second']:,.0f} tokens/s"
        self.progress.update(self.bar, speed=speed)
        for name, task in record["tasks"].items():
            self.first_loss.setdefault(name, task["loss"])
        if self.live is not None:
            self.live.update(Group(self.progress, self._table(record)))
        else:
            losses = "  ".join(f"{name} {task['loss']:.3f}" for name, task in record["tasks"].items())
            bar = self.progress.tasks[0]
            left = f"  {timedelta(seconds=int(bar.time_remaining))} left" if bar.time_remaining else ""
            self.console.print(
                f"step {record['step']}/{bar.total or 0:.0f}  loss {record['loss']:.4f}  {speed}{left}  {losses}",
                highlight=False,
                soft_wrap=True,
            )

    def _table(self, record: Mapping[str, Any]) -> Table:
        table = Table(box=None, padding=(0, 2))
        for heading in ("task", "loss", "at first", "share", "tokens", "repeats"):
            table.add_column(heading, justify="left" if heading == "task" else "right")
        for name, task in record["tasks"].items():
            table.add_row(
                name,
                f"{task['loss']:.3f}",
                f"{self.first_loss[name]:.3f}",
                f"{task['share']:.1%}",
                f"{task['tokens']:,}",
                f"{record['repeats'].get(name, 0.0):.2f}",
            )
        return table

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back; safe to call twice."""
        if self.live is not None:
            self.live.stop()
            self.live = None
