"""Nodes that failed while others went on: told together at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.run_folder import WRITING_FAILED, disk_error

BUG = "This is a bug or a broken installation: run the command again with --debug and report the traceback."


@dataclass(frozen=True)
class Failure:
    """A node that failed.

    Attributes:
        label: of the node.
        errors: at least one.
        bug: whether it is no mistake of the user's.
        cause: the exception, where it was raised in this process.
    """

    label: str
    errors: tuple[MultituneError, ...]
    bug: bool = False
    cause: Exception | None = None

    @classmethod
    def of(cls, label: str, error: Exception) -> Failure:
        """Return the failure that an exception tells of."""
        if isinstance(error, MultituneErrors):
            return cls(label, tuple(error.errors), cause=error)
        if isinstance(error, OSError) and error.errno in WRITING_FAILED:
            return cls(label, (disk_error(error, Path(error.filename or ".")),), cause=error)
        if isinstance(error, MultituneError):
            return cls(label, (error,), cause=error)
        first = (str(error).strip().splitlines() or [""])[0]
        return cls(label, (MultituneError(f"{type(error).__name__}: {first}", "", BUG),), bug=True, cause=error)


class NodesFailed(MultituneErrors):
    """Nodes that failed; everything that does not need them is done, and the same command does only what is missing.

    Args:
        failures: at least one.
    """

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__(
            MultituneError(f"{failure.label}: {error.what}", error.where, error.mend)
            for failure in failures
            for error in failure.errors
        )
        self.exit_code = 1 if any(failure.bug for failure in failures) else 2
