"""Where a verb writes: the answer to stdout, everything said along the way to stderr through one rich console."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Libraries read these once, when they are first imported; what the user has set wins.
QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


# Idle threads of a matrix product sleep instead of spinning: the results are the same, and cores that something else
# uses too are not burnt waiting.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}


@cache
def stderr_console() -> Console:
    """Return the one console on stderr, shared by logs and progress."""
    from rich.console import Console

    return Console(stderr=True)


def stdout_console() -> Console:
    """Return a console on stdout; in a file or pipe, where nobody sees its width, a table is as wide as it needs."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


def _log_handler() -> logging.Handler:
    """Return what shows the log: drawn on a terminal; elsewhere whole lines, which can be searched."""
    from rich.logging import RichHandler

    if not stderr_console().is_terminal:
        return logging.StreamHandler()
    return RichHandler(console=stderr_console(), show_time=False, show_path=False, show_level=False, markup=False)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def speak() -> None:
    """Send multitune's log to the console on stderr and keep other libraries quiet."""

    for name, value in (QUIET_LIBRARIES | SLEEPING_THREADS).items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(?!multitune)")
    logging.getLogger("DeepSpeed").addFilter(_is_error)  # where it is installed it writes to stdout, among answers
    logger = logging.getLogger("multitune")
    if not logger.handlers:
        logger.addHandler(_log_handler())
    # of several processes one says what all of them do; the others only warn
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    logger.propagate = False


def answer_json(value: Any) -> None:
    """Print one value to stdout as JSON; numbers that JSON lacks (NaN, infinities) become null."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: dataclasses and models as mappings, arrays as lists, NaN as None."""
    import dataclasses
    import math

    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int)) or value is None:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    import numpy
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, numpy.ndarray | numpy.generic):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def table_of(title: str, first: str, headings: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    """Return a table for people: a name and cells per row, numbers to the right; brackets are brackets, no markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, cells in rows.items():
        table.add_row(Text(name), *map(Text, cells))
    return table
