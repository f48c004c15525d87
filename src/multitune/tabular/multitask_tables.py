"""Tables of many tasks whose relation is known: one function for all, one for each, or most alike and some not.

Source: Robust Multi-Task Gradient Boosting, Expert Systems with Applications, 2025.
Shape legend: ``N`` rows, ``D`` features, ``T`` tasks, ``J`` random Fourier features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multitune.errors import MultituneError, nearest

Floats = npt.NDArray[np.float64]

SCENARIOS = ("pooled", "separate", "related", "outliers")
SMALLEST_CLASS = 0.1  # of a task's rows, as published; a draw with less is drawn anew
MOST_DRAWS = 200


@dataclass(frozen=True)
class TaskRows:
    """Rows of all tasks.

    Attributes:
        X: (N, D), uniform in [-1, 1].
        y: (N,), numbers, or 0 and 1.
        task: (N,), from 0 on, sorted.
        signal: (N,), y without noise and before any cut into classes.
    """

    X: Floats
    y: Floats
    task: npt.NDArray[np.intp]
    signal: Floats


@dataclass(frozen=True)
class _Function:
    """f(x) = sum_j a_j sqrt(2 / J) cos(w_j . x / l + b_j): a draw from a Gaussian process of length scale l."""

    a_J: Floats
    w_JD: Floats
    b_J: Floats

    def __call__(self, X: Floats) -> Floats:
        return np.asarray(np.cos(X @ self.w_JD.T + self.b_J) @ self.a_J * np.sqrt(2 / len(self.a_J)))


def _draw(random: np.random.Generator, features: int, waves: int = 500) -> _Function:
    length = 0.25 * features
    a_J, w_JD = random.standard_normal(waves), random.standard_normal((waves, features))
    return _Function(a_J, w_JD / length, random.uniform(0, 2 * np.pi, waves))


class MultitaskTables:
    """Tasks with a known truth; ``sample`` draws rows of them. See ``make_multitask_tables``.

    Attributes:
        is_outlier: (T,), the tasks that follow another function than most.
        train, test: rows.
    """

    def __init__(
        self, scenario: str, kind: str, tasks: int, outliers: int, features: int, share: float, noise: float, seed: int
    ) -> None:
        random = np.random.default_rng([seed, 0])
        self.kind, self.features, self.share, self.noise, self.seed = kind, features, share, noise, seed
        self.is_outlier = np.arange(tasks) >= tasks - (outliers if scenario == "outliers" else 0)
        common, other = _draw(random, features), _draw(random, features)
        self._common = [other if outlier else common for outlier in self.is_outlier]
        self._own = [_draw(random, features) for _ in range(tasks)]
        if scenario == "pooled":
            self._own = self._common
        elif scenario == "separate":
            self._common = self._own
        self.train = self.test = TaskRows(np.empty((0, features)), np.empty(0), np.empty(0, np.intp), np.empty(0))

    def truth(self, X: Floats, task: int) -> Floats:
        """Return a task's function without noise: share * common + (1 - share) * own."""
        return np.asarray(self.share * self._common[task](X) + (1 - self.share) * self._own[task](X))

    def sample(self, rows: int | Sequence[int], split: str) -> TaskRows:
        """Return so many rows of each task; the same split gives the same rows, another one others of one truth."""
        tasks = len(self.is_outlier)
        counts = [rows] * tasks if isinstance(rows, int) else [int(count) for count in rows]
        if len(counts) != tasks or min(counts) < 1:
            raise _error(f"{counts} are not numbers of rows of {tasks} tasks.", "Give one for all, or one for each.")
        random = np.random.default_rng([self.seed, 1, *split.encode()])
        task = np.repeat(np.arange(tasks), counts)
        X = random.uniform(-1, 1, (len(task), self.features))
        signal = np.concatenate([self.truth(X[task == r], r) for r in range(tasks)])
        y = signal + self.noise * random.standard_normal(len(task))
        return TaskRows(X, (y > 0).astype(np.float64) if self.kind == "classification" else y, task, signal)

    def is_balanced(self) -> bool:
        """Whether each task's smaller class has a tenth of its rows or more, in both splits."""
        shares = [
            float(rows.y[rows.task == r].mean())
            for rows in (self.train, self.test)
            for r in range(len(self.is_outlier))
        ]
        return all(SMALLEST_CLASS <= share <= 1 - SMALLEST_CLASS for share in shares)


def make_multitask_tables(
    scenario: str = "outliers",
    kind: str = "regression",
    *,
    tasks: int = 10,
    outliers: int = 2,
    features: int = 5,
    rows: int | Sequence[int] = 300,
    test_rows: int | Sequence[int] = 1000,
    share: float = 0.9,
    noise: float = 0.0,
    seed: int = 0,
) -> MultitaskTables:
    """Return tables of several tasks and the truth behind them; the defaults are the paper's setting.

    Args:
        scenario: "pooled": one function for all tasks; "separate": one for each; "related": ``share`` of a common one
            and the rest of its own; "outliers": related, and the last tasks share another common function.
        kind: "regression", or "classification" by the sign, drawn anew until each task has a tenth of either class.
        outliers: tasks that follow the other function, in that scenario.
        rows, test_rows: of each task; one number for all, or one for each.
        noise: standard deviation.

    Raises:
        MultituneError: an unknown scenario or kind, numbers that do not fit, or classes that stay unbalanced.
    """
    for word, allowed, what in ((scenario, SCENARIOS, "scenario"), (kind, ("regression", "classification"), "kind")):
        if word not in allowed:
            raise _error(f"There is no {what} '{word}'.{nearest(word, allowed)}", f"Give one of {', '.join(allowed)}.")
    if tasks < 1 or features < 1 or not 0 <= outliers < tasks or not 0 <= share <= 1 or noise < 0:
        raise _error(
            f"There are {tasks} tasks with {outliers} outliers, {features} features, a share of {share:g} and noise "
            f"{noise:g}.",
            "Have a task that is no outlier, a feature, a share from 0 to 1, and noise of 0 or more.",
        )
    for draw in range(MOST_DRAWS):
        drawn_seed = seed if draw == 0 else seed + 1_000_003 * draw
        tables = MultitaskTables(scenario, kind, tasks, outliers, features, share, noise, drawn_seed)
        tables.train, tables.test = tables.sample(rows, "train"), tables.sample(test_rows, "test")
        if kind == "regression" or tables.is_balanced():
            return tables
    raise _error(
        f"In {MOST_DRAWS} draws some task had less than a tenth of one class.",
        "Have fewer tasks, more rows, or another seed.",
    )


def _error(what: str, mend: str) -> MultituneError:
    return MultituneError(what, "make_multitask_tables", mend)
