"""Rows that cannot be used: why one is bad, and the account of those that were met."""

from __future__ import annotations

from multitune.errors import MultituneError

LISTED = 10
"""So many bad rows are listed; the others are counted."""


class BadRow(Exception):
    """One row cannot be used.

    Args:
        reason: why, as the part of a sentence that follows "train.jsonl:12: ".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BadRows:
    """The bad rows that were met while reading.

    Attributes:
        count: how many.
        first: (where, reason) of the first ten.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[str, str]] = []

    def add(self, where: str, reason: str) -> None:
        """Count a bad row."""
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append((where, reason))

    def listing(self) -> str:
        """The first ones, one a line."""
        return "".join(f"\n    {where}: {reason}" for where, reason in self.first)

    def refusal(self, name: str, key: str) -> MultituneError:
        """The error that lists them.

        Args:
            name: what they were met in: "task 'sst2', train".
            key: key of the recipe that leads to them.
        """
        rows = "1 bad row" if self.count == 1 else f"{self.count} bad rows"
        more = " at least" if self.count >= LISTED else ""
        return MultituneError(
            f"{name} has{more} {rows}:{self.listing()}",
            key,
            "Mend these rows, or set on_bad_row: skip to leave them out.",
        )
