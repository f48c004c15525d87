"""What training on one task does for another: gains over the base model, their shares, and how alike tasks are.

    gain_rc     = s_c (score of the model trained on r, on c - score of the base model on c),  s_c = -1 for errors
    share_rc    = gain_rc / gain_cc                    undefined where task c gains nothing from its own training
    affinity_rc = (share_rc + share_cr) / 2            each within [-1, 1]; of the two that are defined; 1 with itself

Gains are in each task's own metric. Shares have no unit, so tasks that are measured differently are compared by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from multitune.errors import MultituneError
from multitune.scoring.predictions import Prediction
from multitune.scoring.significance import paired_difference
from multitune.tasks.metrics import Metric, metric

RESAMPLES = 500
"""Of a metric that is no mean over rows and is computed anew on every resample."""

SAME = 1e-6
"""Up to this distance a metric computed from predictions is the one on the scoreboard."""

By = Mapping[str, Mapping[str, Any]]
"""Values by row, then by column."""


@dataclass(frozen=True)
class Answered:
    """One model on one task: the value of the task's metric, and the answers it came from ([] where none are kept)."""

    value: float
    predictions: Sequence[Prediction] = ()


@dataclass(frozen=True)
class Gain:
    """A difference of scores whose sign makes more the better; bounds of its 95 % interval, None where unknown."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval leaves out zero, else "unclear"."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "unclear"
        return "better" if self.low > 0 else "worse"


@dataclass(frozen=True)
class Transfer:
    """The matrices of a transfer run.

    Attributes:
        rows: the tasks that a model was trained on, each alone.
        columns: the tasks that were scored: first those of rows, then held-out ones.
        metrics: the metric's name by column.
        base: the base model's score by column.
        scores, gains: float and `Gain` by row and column.
        shares: share of the column's own gain by row and column; None where undefined, and for held-out columns.
        affinity: symmetric, by row and row; None where neither share is defined.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: Mapping[str, str]
    base: Mapping[str, float]
    scores: By
    gains: By
    shares: By
    affinity: By

    @property
    def gained_nothing(self) -> tuple[str, ...]:
        """Tasks whose own training shows no gain: nothing can be measured as a share of it."""
        return tuple(task for task in self.rows if not is_gain(self.gains[task][task]))


def transfer(
    rows: Sequence[str],
    columns: Sequence[str],
    metrics: Mapping[str, str],
    base: Mapping[str, Answered],
    trained: Mapping[str, Mapping[str, Answered]],
) -> Transfer:
    """Return the matrices of models that were trained on one task each.

    Args:
        rows: the tasks with a model of their own.
        columns: the tasks that all models were scored on; they begin with those of rows.
        metrics: every column's metric.
        base: the model before training, by column.
        trained: the models, by row and column.
    """
    gains = {
        row: {column: gain(base[column], trained[row][column], metrics[column]) for column in columns} for row in rows
    }
    shares = {row: {c: share(gains[row][c], gains[c][c]) if c in rows else None for c in columns} for row in rows}
    return Transfer(
        rows=tuple(rows),
        columns=tuple(columns),
        metrics=dict(metrics),
        base={column: base[column].value for column in columns},
        scores={row: {column: trained[row][column].value for column in columns} for row in rows},
        gains=gains,
        shares=shares,
        affinity={one: {other: _affinity(shares, one, other) for other in rows} for one in rows},
    )


def is_gain(own: Gain) -> bool:
    """Whether a task gains from its own training: the interval lies above zero, or the gain where there is none."""
    return own.value > 0 and (own.low is None or own.low > 0)


def share(found: Gain, own: Gain) -> float | None:
    """Return a gain as a share of what the task's own training gains; None where that is nothing."""
    return found.value / own.value if is_gain(own) else None


def gain(before: Answered, after: Answered, name: str) -> Gain:
    """Return what a model gains over another on the same rows, with its 95 % interval, paired over rows.

    Where the metric is a mean over rows, the paired bootstrap of `significance`; otherwise the metric is computed anew
    on RESAMPLES resamples of the rows, the same ones for both models. Without answers there is no interval.
    """
    measure = metric(name)
    sign = 1.0 if measure.higher_is_better else -1.0
    interval = _interval(before, after, measure)
    bounds = sorted(sign * bound for bound in interval) if interval else [None, None]
    return Gain(sign * (after.value - before.value), *bounds)


def _affinity(shares: By, one: str, other: str) -> float | None:
    if one == other:
        return 1.0
    both = (shares[one][other], shares[other][one])
    defined = [min(1.0, max(-1.0, found)) for found in both if found is not None]
    return fmean(defined) if defined else None


def _interval(before: Answered, after: Answered, measure: Metric) -> tuple[float, float] | None:
    sides = (before, after)
    if not all(side.predictions for side in sides):
        return None
    if all(abs(fmean(one.score for one in side.predictions) - side.value) <= SAME for side in sides):
        try:
            found = paired_difference(before.predictions, after.predictions)
        except MultituneError:  # no row in common: nothing can be paired
            return None
        return found.low, found.high
    return _interval_of_corpus_metric(before, after, measure)


def _interval_of_corpus_metric(before: Answered, after: Answered, measure: Metric) -> tuple[float, float] | None:
    """Return the interval of a metric that is no mean over rows; None where the kept answers do not give its value."""
    if [one.id for one in before.predictions] != [one.id for one in after.predictions]:
        return None
    old, reference = _columns(before.predictions, measure)
    new, _ = _columns(after.predictions, measure)
    try:
        fits = all(
            abs(measure.score(answers, reference) - side.value) <= SAME
            for answers, side in ((old, before), (new, after))
        )
    except (TypeError, ValueError):
        return None
    if not fits:
        return None
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(reference), len(reference)).tolist()
        right = [reference[i] for i in drawn]
        differences.append(
            measure.score([new[i] for i in drawn], right) - measure.score([old[i] for i in drawn], right)
        )
    defined = np.array([one for one in differences if not np.isnan(one)])
    if not len(defined):
        return None
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high)


def _columns(predictions: Sequence[Prediction], measure: Metric) -> tuple[list[Any], list[Any]]:
    """Return answers and references as a metric takes them: choices as numbers that stand for their texts."""
    answers: list[Any] = [one.prediction for one in predictions]
    references: list[Any] = [one.reference for one in predictions]
    if "label" not in measure.kinds:
        return answers, references
    numbers: dict[Any, int] = {}
    for text in references:
        numbers.setdefault(text, len(numbers))
    # a wrong answer's number only has to be the same whenever it is given
    return [_number(numbers, text) for text in answers], [numbers[text] for text in references]


def _number(numbers: dict[Any, int], text: Any) -> int:
    return numbers.setdefault(text, len(numbers))
