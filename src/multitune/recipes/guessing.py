"""What `multitune init` guesses of rows whose fields have names of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

FEW_LABELS = 50
"""More distinct values than this are no labels that one would want to be guessed."""

ROWS_PER_LABEL = 3.0
"""A label occurs at least so often on average."""


def guess_fields(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return the field that is asked and the one that labels it, or None where that is not plain.

    Asked is the one field of long text: at least twice as long on average as any other. The label is the last field of
    few distinct short values.

    Args:
        rows: some rows, at least one.
    """
    names = [name for name in rows[0] if all(isinstance(row.get(name), str | int | bool) for row in rows)]
    lengths = {name: sum(len(str(row[name])) for row in rows) / len(rows) for name in names}
    by_length = sorted(names, key=lambda name: -lengths[name])
    labels = [name for name in names if _labels(rows, name)]
    if len(by_length) < 2 or not labels or lengths[by_length[0]] < 2 * lengths[by_length[1]]:
        return None
    text, label = by_length[0], labels[-1]
    return None if text == label else (text, label)


def _labels(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    counts = Counter(str(row[name]).strip() for row in rows)
    few = 2 <= len(counts) <= FEW_LABELS and len(rows) / len(counts) >= ROWS_PER_LABEL
    return few and max(map(len, counts)) <= 60 and "" not in counts
