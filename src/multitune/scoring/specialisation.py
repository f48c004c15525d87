"""What a training on one task has done to all others: the format that they answer in, and their mean score."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def format_rate(outputs: Sequence[str], labels: Collection[str]) -> float:
    """Return the share of outputs that are labels of a task, 0 to 1: of another task's outputs, how far its format
    has taken over (arXiv:2211.00635, section 2.2).

    Args:
        outputs: at least one; white space around them does not count.
        labels: as the task writes them.
    """
    if not outputs:
        raise ValueError("no outputs, of which no share can be told")
    known = {label.strip() for label in labels}
    return sum(output.strip() in known for output in outputs) / len(outputs)


def normalised_average(scores: Sequence[float]) -> float:
    """Return Norm. Avg.: the plain mean of scores that are each on a scale from 0 to 100."""
    if outside := [score for score in scores if not 0 <= score <= 100]:
        raise ValueError(f"scores are between 0 and 100, not {outside[0]}")
    return sum(scores) / len(scores)
