"""MultiTab-Bench: tables of many targets whose relatedness, difficulty and noise are chosen.

Source: MultiTab, AAAI 2026. Shape legend: ``n`` rows, ``T`` targets, ``D`` features.

A row is x ~ N(0, I_D); target t is ``y_t = sum_{k=1..k_t} (w_t . x)^k + sigma_t eps``. The directions are
``W = Q L^1/2 U`` with ``P = Q L Q'`` and orthonormal rows U, so that ``W W' = P``: P holds the cosines between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multitune.errors import MultituneError

Floats = npt.NDArray[np.float64]

PAPER_DEGREES = (1, 3, 2, 3, 4, 2, 3)
CALIBRATION_ROWS = 100_000  # one-dimensional, by which the cuts between classes are found
ROUNDING = 1e-8  # by which an eigenvalue may be below 0


@dataclass(frozen=True)
class MultiTabTable:
    """Rows of a benchmark.

    Attributes:
        X: float64 (n, D).
        Y: float64 (n, T): values, or codes of classes.
        signal: float64 (n, T), the values without noise and before any cut into classes.
    """

    X: Floats
    Y: Floats
    signal: Floats


class MultiTabBench:
    """A family of tables with one ground truth; ``sample`` draws as many rows and splits of it as are wanted.

    Args:
        targets: T.
        features: D, at least T.
        correlation: the cosine between any two targets' directions, or the matrix P, (T, T).
        degrees: k_t of every target, or one for all; the paper's are 1, 3, 2, 3, 4, 2, 3 for its seven targets.
        noise: sigma_t of every target, or one for all.
        classes: into how many classes a target is cut at its quantiles, 0 for a regression target; one for all, or one
            for each. Cuts are the same in every split.
        seed: of the directions, and, with the name of a split, of its rows.

    Attributes:
        P: (T, T), cosines between the directions.
        W: (T, D), the directions, of length 1.

    Raises:
        MultituneError: more targets than features, no such correlations, degrees below 1, negative noise.
    """

    def __init__(
        self,
        targets: int = 7,
        features: int = 32,
        *,
        correlation: float | Sequence[Sequence[float]] | Floats = 0.4,
        degrees: int | Sequence[int] | None = None,
        noise: float | Sequence[float] = 0.01,
        classes: int | Sequence[int] = 0,
        seed: int = 0,
    ) -> None:
        if not 1 <= targets <= features:
            raise _error(
                f"{targets} directions with given cosines need as many features, and there are {features}.",
                "Have at least one target, and as many features as targets.",
            )
        if degrees is None:
            degrees = [PAPER_DEGREES[t % len(PAPER_DEGREES)] for t in range(targets)]
        self.degrees = [int(k) for k in _one_each(degrees, targets, "degrees")]
        self.noise = np.array(_one_each(noise, targets, "noise"), dtype=np.float64)
        self.classes = [int(c) for c in _one_each(classes, targets, "classes")]
        if min(self.degrees) < 1 or self.noise.min() < 0 or min(self.classes) < 0 or 1 in self.classes:
            raise _error(
                f"The degrees are {self.degrees}, the noise {self.noise.tolist()}, the classes {self.classes}.",
                "Degrees are at least 1, noise is not negative, classes are 0 or at least 2.",
            )
        self.seed = seed
        self.P = correlation_matrix(correlation, targets)
        self.W = _directions(self.P, features, np.random.default_rng([seed, 0]))
        self.cuts = [self._quantiles(t) for t in range(targets)]

    def sample(self, rows: int, split: str = "train") -> MultiTabTable:
        """Return rows of a split; the same name gives the same rows, another name other ones of the same truth."""
        letters = [int(letter) for letter in split.encode()]
        random = np.random.default_rng([self.seed, 1, *letters])
        X = random.standard_normal((rows, self.W.shape[1]))
        projection_nT = X @ self.W.T
        signal = np.stack([_polynomial(projection_nT[:, t], k) for t, k in enumerate(self.degrees)], axis=1)
        Y = signal + self.noise * random.standard_normal(signal.shape)
        for t, cuts in enumerate(self.cuts):
            if len(cuts):
                Y[:, t] = np.searchsorted(cuts, Y[:, t], side="right")
        return MultiTabTable(X, Y, signal)

    @property
    def kinds(self) -> list[str]:
        """What every target is: "regression", "binary" or "multiclass"."""
        return ["regression" if not c else "binary" if c == 2 else "multiclass" for c in self.classes]

    def covariance(self) -> Floats:
        """Return the exact covariance of the targets before any cut, (T, T).

        With ``y_t = sum_k c_tk He_k(z_t)`` it is ``Cov(y_s, y_t) = sum_{k>=1} c_sk c_tk k! P_st^k``, and sigma_t^2 more
        on the diagonal.
        """
        most = max(self.degrees)
        c = np.zeros((len(self.degrees), most + 1))
        for t, degree in enumerate(self.degrees):
            c[t, : degree + 1] = hermite_coefficients(degree)
        terms = [math.factorial(k) * np.outer(c[:, k], c[:, k]) * self.P**k for k in range(1, most + 1)]
        return np.asarray(np.sum(terms, axis=0) + np.diag(self.noise**2))

    def _quantiles(self, target: int) -> Floats:
        """The cuts between classes of equal size: a target's distribution depends on one normal number and noise."""
        if not self.classes[target]:
            return np.empty(0)
        random = np.random.default_rng([self.seed, 2, target])
        z, eps = random.standard_normal((2, CALIBRATION_ROWS))
        values = _polynomial(z, self.degrees[target]) + self.noise[target] * eps
        return np.asarray(np.quantile(values, np.arange(1, self.classes[target]) / self.classes[target]))


def hermite_coefficients(degree: int) -> Floats:
    """Return the coefficients of ``z + z^2 + ... + z^degree`` in the Hermite polynomials He_0, He_1, ..."""
    from numpy.polynomial.hermite_e import poly2herme

    return np.asarray(poly2herme([0.0] + [1.0] * degree))


def correlation_matrix(correlation: float | Sequence[Sequence[float]] | Floats, targets: int) -> Floats:
    """Return P, (T, T), from one cosine for all pairs or from the matrix itself.

    Raises:
        MultituneError: no directions have these cosines: not square, not symmetric, no ones on the diagonal, or an
            eigenvalue below 0, as one cosine below -1/(T - 1) for all pairs gives.
    """
    given = np.asarray(correlation, dtype=np.float64)
    if given.ndim == 0:
        lowest = -1 / (targets - 1) if targets > 1 else -1.0
        if not lowest - ROUNDING <= float(given) <= 1:
            raise _error(
                f"No {targets} directions have a cosine of {float(given):g} between any two of them.",
                f"Give one between {lowest:.4g} and 1.",
            )
        given = np.where(np.eye(targets, dtype=bool), 1.0, given)
    if given.shape != (targets, targets):
        raise _error(f"The matrix of cosines is {given.shape}.", f"Give one of shape {(targets, targets)}.")
    if not np.allclose(given, given.T) or not np.allclose(np.diag(given), 1):
        raise _error("The matrix is not symmetric with ones on its diagonal.", "Give cosines between directions.")
    smallest = float(np.linalg.eigvalsh(given)[0])
    if smallest < -ROUNDING:
        raise _error(
            f"No directions have these cosines: the matrix has an eigenvalue of {smallest:.4g}.",
            "Give a positive semidefinite matrix; smaller cosines are always possible.",
        )
    return given


def _directions(P: Floats, features: int, random: np.random.Generator) -> Floats:
    """Return W = Q L^1/2 U."""
    eigenvalues, Q = np.linalg.eigh(P)
    U = np.linalg.qr(random.standard_normal((features, len(P))))[0].T
    return np.asarray((Q * np.sqrt(eigenvalues.clip(min=0))) @ U)


def _polynomial(z: Floats, degree: int) -> Floats:
    """Return z + z^2 + ... + z^degree, by Horner's rule."""
    value = np.zeros_like(z)
    for _ in range(degree):
        value = (value + 1) * z
    return value


def _one_each(value: float | Sequence[float], targets: int, where: str) -> list[float]:
    values = [value] * targets if np.ndim(value) == 0 else list(value)  # type: ignore[arg-type]
    if len(values) != targets:
        raise _error(f"There are {len(values)} {where} for {targets} targets.", "Give one for all, or one for each.")
    return values  # type: ignore[return-value]


def _error(what: str, mend: str) -> MultituneError:
    return MultituneError(what, "MultiTabBench", mend)
