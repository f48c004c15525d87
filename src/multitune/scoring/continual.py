"""What a sequence of trainings gained and forgot: overall performance and backward transfer.

R[t, i] is the score on task i after round t, both from 1; task i is the one that round i trained. Only i <= t is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Divisor = Literal["t", "t-1"]
"""Papers differ in what the sum of backward transfer is divided by: rounds, or earlier tasks."""


def overall_performance(scores: Sequence[Sequence[float]]) -> float:
    """Return OP_t = (1/t) sum over i <= t of R[t, i]: how good the model is in the end at all it was trained on.

    Args:
        scores: R, a row for every round with the scores on the tasks so far (more are ignored); at least one row.

    Raises:
        ValueError: a row that is too short.
    """
    rounds = _checked(scores)
    return math.fsum(scores[-1][:rounds]) / rounds


def backward_transfer(scores: Sequence[Sequence[float]], divisor: Divisor = "t-1") -> float:
    """Return BWT_t = (1/divisor) sum over i < t of (R[t, i] - R[i, i]): below 0 where later rounds cost earlier tasks.

    Args:
        scores: as for `overall_performance`.
        divisor: ``t-1`` earlier tasks, or ``t`` rounds.

    Returns:
        nan after a single round, which has no earlier task.

    Raises:
        ValueError: a row that is too short.
    """
    rounds = _checked(scores)
    if rounds == 1:
        return math.nan
    change = math.fsum(scores[-1][task] - scores[task][task] for task in range(rounds - 1))
    return change / (rounds if divisor == "t" else rounds - 1)


def _checked(scores: Sequence[Sequence[float]]) -> int:
    for round, row in enumerate(scores, start=1):
        if len(row) < round:
            raise ValueError(f"after round {round} there are {round} tasks, and {len(row)} scores")
    if not scores:
        raise ValueError("no round has been scored")
    return len(scores)
