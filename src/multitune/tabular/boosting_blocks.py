"""R-MTGB's three blocks: what is shared, what is robustly shared, what is each task's own.

    F_i = m(x_i) + (1 - s_r) q(x_i) + s_r p(x_i) + h_r(x_i),   s_r = sigmoid(theta_r),   r the task of row i

Source: Robust Multi-Task Gradient Boosting, Expert Systems with Applications, 2025.
Shape legend: ``N`` rows, ``D`` features, ``K`` outputs, ``T`` tasks, ``I`` iterations, ``R`` restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from numba import njit

from multitune.tabular.boosting_losses import Loss
from multitune.tabular.boosting_trees import Trees, in_turn

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

FUNCTIONS = ("m", "p", "q", "h")


class Engine(Protocol):
    """What grows the trees, of all rows or of each task's."""

    def pooled(self, *targets_NK: Floats) -> tuple[Trees, list[Floats]]: ...

    def per_task(self, target_NK: Floats) -> tuple[Trees, Floats]: ...


@dataclass(frozen=True)
class BlockSettings:
    """How the blocks run.

    Attributes:
        iterations: n1, n2, n3.
        learning_rate: of trees.
        theta_learning_rate, theta_reduction, theta_l2, theta_clip: see ``theta_step``.
        theta_unit: (K,), by which each output's part of theta's gradient is divided.
        patience: iterations without a better validation loss after which a block ends, None to run all of them.
        tolerance: by which a validation loss has to be better.
    """

    iterations: tuple[int, int, int]
    learning_rate: float
    theta_learning_rate: float
    theta_reduction: str
    theta_l2: float
    theta_clip: float | None
    theta_unit: Floats
    patience: int | None
    tolerance: float


@dataclass
class RowSet:
    """Rows with what every function says of them so far.

    Attributes:
        task: (N,), sorted for training rows.
        y: (N, K).
        weight: (N,), above 0.
        X: (N, D), of validation rows only: the engine knows the training rows.
        values: "m", "p", "q", "h" -> (N, K).
    """

    task: Places
    y: Floats
    weight: Floats
    X: Floats | None = None
    values: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = self.values or {name: np.zeros_like(self.y) for name in FUNCTIONS}

    def score(self, theta_T: Floats) -> Floats:
        """Return F, (N, K), as ``combined`` does, in one pass."""
        F_NK = np.empty_like(self.y)
        m_NK, p_NK, q_NK, h_NK = (self.values[name] for name in FUNCTIONS)
        _score(F_NK, m_NK, p_NK, q_NK, h_NK, sigmoid(theta_T), self.task)
        return F_NK

    def mean_loss(self, loss: Loss, F_NK: Floats) -> float:
        """Return the weighted mean loss."""
        return float(self.weight @ loss.loss(self.y, F_NK) / self.weight.sum())

    def copy(self) -> RowSet:
        """Return the same rows with values of their own."""
        return RowSet(self.task, self.y, self.weight, self.X, {name: v.copy() for name, v in self.values.items()})


@dataclass
class Boosted:
    """What was learned.

    Attributes:
        trees: of "m", "p", "q", "h"; values are scaled by the learning rate.
        theta_IT: theta before block 2 and after each of its iterations, (n2 + 1, T).
        iterations: that each block has run and kept.
        training_loss, validation_loss: after every iteration of the three blocks in turn; the latter is empty without
            validation rows.
    """

    trees: dict[str, Trees]
    theta_IT: Floats
    iterations: tuple[int, int, int]
    training_loss: list[float]
    validation_loss: list[float]

    @property
    def theta(self) -> Floats:
        return np.asarray(self.theta_IT[-1])


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def combined(values: dict[str, Floats], s_N: Floats) -> Floats:
    """Return F = m + (1 - s) q + s p + h from the values of the four functions and every row's sigmoid(theta)."""
    s = s_N[:, None]
    return np.asarray(values["m"] + (1 - s) * values["q"] + s * values["p"] + values["h"])


@njit(cache=True, nogil=True)
def _score(F_NK, m_NK, p_NK, q_NK, h_NK, s_T, task):  # type: ignore[no-untyped-def]  # called by RowSet.score alone
    for i in range(len(F_NK)):
        s = s_T[task[i]]
        for k in range(F_NK.shape[1]):
            F_NK[i, k] = m_NK[i, k] + (1 - s) * q_NK[i, k] + s * p_NK[i, k] + h_NK[i, k]


def theta_gradient(theta_T: Floats, task: Places, weight: Floats, g_NK: Floats, p_NK: Floats, q_NK: Floats) -> Floats:
    """Return dL/dtheta_r = - s_r (1 - s_r) sum_{i of r} w_i sum_k g_ik (p_ik - q_ik), with g = -dL/dF."""
    inner = np.bincount(task, weights=weight * np.einsum("nk,nk->n", g_NK, p_NK - q_NK), minlength=len(theta_T))
    s = sigmoid(theta_T)
    return np.asarray(-s * (1 - s) * inner)


def theta_step(theta_T: Floats, gradient_T: Floats, task_weight_T: Floats, settings: BlockSettings) -> Floats:
    """Return theta after one step of gradient descent.

    With reduction "mean" a task's gradient is divided by its rows and multiplied by those of the median task, so that
    large tasks do not run away; ``theta_l2`` pulls towards 0; ``theta_clip`` bounds |theta|.
    """
    if settings.theta_reduction == "mean":
        gradient_T = gradient_T * np.median(task_weight_T) / task_weight_T
    theta_T = theta_T - settings.theta_learning_rate * (gradient_T + settings.theta_l2 * theta_T)
    return theta_T if settings.theta_clip is None else np.clip(theta_T, -settings.theta_clip, settings.theta_clip)


class _Run:
    """One run of the blocks: the functions' values, theta, and the trees so far; kept at the best iteration."""

    def __init__(
        self,
        engine: Engine,
        loss: Loss,
        settings: BlockSettings,
        training: RowSet,
        validation: RowSet | None,
        theta_T: Floats,
    ) -> None:
        self.engine, self.loss, self.settings = engine, loss, settings
        self.training, self.validation = training, validation
        self.theta_IT = [theta_T]
        self.task_weight_T = np.bincount(training.task, training.weight, len(theta_T)).astype(np.float64)
        self.trees: dict[str, list[Trees]] = {name: [] for name in FUNCTIONS}
        self.iterations: list[int] = []
        self.losses: tuple[list[float], list[float]] = ([], [])
        self.F_NK = training.score(theta_T)

    def branch(self, theta_T: Floats) -> _Run:
        """Return a run that goes on from here with another theta."""
        twin = _Run(
            self.engine,
            self.loss,
            self.settings,
            self.training.copy(),
            self.validation and self.validation.copy(),
            theta_T,
        )
        twin.trees = {name: list(trees) for name, trees in self.trees.items()}
        twin.iterations = list(self.iterations)
        twin.losses = (list(self.losses[0]), list(self.losses[1]))
        return twin

    def add(self, name: str, trees: Trees, said_NK: Floats, *, per_task: bool = False) -> None:
        """Let a function grow by the learning rate times new trees."""
        rate = self.settings.learning_rate
        self.training.values[name] += rate * said_NK
        self.trees[name].append(trees.scaled(rate))
        if self.validation is not None:
            assert self.validation.X is not None
            task = self.validation.task if per_task else None
            self.trees[name][-1].add_to(self.validation.values[name], self.validation.X, task)

    def residual(self) -> Floats:
        """Return g at the current F."""
        return self.loss.residual(self.training.y, self.F_NK)

    def shared_step(self) -> None:
        """Block 1: m follows the residual of all rows."""
        trees, (said,) = self.engine.pooled(self.residual())
        self.add("m", trees, said)

    def robust_step(self) -> None:
        """Block 2: p, q and theta, each from the same F and the same theta."""
        theta, rows = self.theta_IT[-1], self.training
        g = self.residual()
        s = sigmoid(theta)[rows.task][:, None]
        trees, (said_p, said_q) = self.engine.pooled(s * g, (1 - s) * g)
        unit = self.settings.theta_unit
        gradient = theta_gradient(theta, rows.task, rows.weight, g / unit, rows.values["p"], rows.values["q"])
        self.theta_IT.append(theta_step(theta, gradient, self.task_weight_T, self.settings))
        self.add("p", trees.tree(0), said_p)
        self.add("q", trees.tree(1), said_q)

    def own_step(self) -> None:
        """Block 3: every task's h follows the residual of its own rows."""
        trees, said = self.engine.per_task(self.residual())
        self.add("h", trees, said, per_task=True)

    def block(self, step: Callable[[], None], most: int) -> None:
        """Run a block's iterations, and go back to the best of them where validation rows decide."""
        patience = self.settings.patience if self.validation is not None else None
        best, best_loss, kept = 0, np.inf, None
        if patience is not None and most:
            best_loss, kept = self._measured()[1], self._kept()
        for iteration in range(1, most + 1):
            step()
            self.F_NK = self.training.score(self.theta_IT[-1])
            training, validation = self._measured()
            self.losses[0].append(training)
            if self.validation is not None:
                self.losses[1].append(validation)
            if patience is None:
                continue
            if validation < best_loss - self.settings.tolerance:
                best, best_loss, kept = iteration, validation, self._kept()
            elif iteration - best >= patience:
                break
        if patience is not None and kept is not None:
            self.training, self.validation, thetas, trees, losses = kept
            self.theta_IT = self.theta_IT[:thetas]
            self.trees = {name: self.trees[name][:count] for name, count in trees.items()}
            self.losses = (self.losses[0][:losses], self.losses[1][:losses])
            self.F_NK = self.training.score(self.theta_IT[-1])
        self.iterations.append(most if patience is None else best)

    def _kept(self) -> tuple[RowSet, RowSet | None, int, dict[str, int], int]:
        trees = {name: len(trees) for name, trees in self.trees.items()}
        validation = self.validation and self.validation.copy()
        return self.training.copy(), validation, len(self.theta_IT), trees, len(self.losses[0])

    def _measured(self) -> tuple[float, float]:
        validation, theta_T = self.validation, self.theta_IT[-1]
        held_out = np.nan if validation is None else validation.mean_loss(self.loss, validation.score(theta_T))
        return self.training.mean_loss(self.loss, self.F_NK), held_out

    def finished(self) -> Boosted:
        """Return what was learned."""
        T, K = len(self.theta_IT[0]), self.training.y.shape[1]
        trees = {name: in_turn(self.trees[name], T if name == "h" else 1, K) for name in FUNCTIONS}
        n1, n2, n3 = self.iterations
        return Boosted(trees, np.stack(self.theta_IT), (n1, n2, n3), *self.losses)


def boost(
    engine: Engine,
    loss: Loss,
    settings: BlockSettings,
    training: RowSet,
    validation: RowSet | None,
    theta_starts: Iterator[Floats],
) -> Boosted:
    """Run block 1 once, then blocks 2 and 3 from each of the starts, and return the best run.

    Runs are compared by the validation loss at their end, or by the training loss without validation rows.

    Args:
        theta_starts: theta before block 2, (T,) each; at least one.
    """
    starts = list(theta_starts)
    n1, n2, n3 = settings.iterations
    run = _Run(engine, loss, settings, training, validation, starts[0])
    run.block(run.shared_step, n1)
    finished: list[tuple[float, Boosted]] = []
    for theta_T in starts:
        twin = run.branch(theta_T) if len(starts) > 1 else run
        twin.block(twin.robust_step, n2)
        twin.block(twin.own_step, n3)
        training_loss, validation_loss = twin._measured()
        finished.append((training_loss if validation is None else validation_loss, twin.finished()))
    return min(finished, key=lambda one: one[0])[1]
