"""How well targets are predicted: AUROC, explained variance, and the gain over single-task models in per cent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from multitune.errors import MultituneError

Numbers = npt.NDArray[np.floating]


def area_under_curve(label_B: Numbers, probability_BK: Numbers, weight_B: Numbers | None = None) -> float:
    """Return the AUROC of a classification target: of class 1 for two classes, macro one-versus-rest for more.

    Args:
        label_B: codes of the classes, no missing ones.
        probability_BK: of every class.
        weight_B: of every row.

    Returns:
        The mean over those classes that some rows have and others have not; nan where there is none.
    """
    from sklearn.metrics import roc_auc_score

    classes = range(1, 2) if probability_BK.shape[1] == 2 else range(probability_BK.shape[1])
    told_apart = [k for k in classes if 0 < np.count_nonzero(label_B == k) < len(label_B)]
    areas = [roc_auc_score(label_B == k, probability_BK[:, k], sample_weight=weight_B) for k in told_apart]
    return math.fsum(areas) / len(areas) if areas else math.nan


def explained_variance(value_B: Numbers, predicted_B: Numbers, weight_B: Numbers | None = None) -> float:
    """Return 1 - Var(y - prediction) / Var(y), blind to bias; nan for fewer than two rows or a constant target."""
    from sklearn.metrics import explained_variance_score

    if len(value_B) < 2 or np.ptp(value_B) == 0:
        return math.nan
    return float(explained_variance_score(value_B, predicted_B, sample_weight=weight_B))


def multitask_gain(
    scores: Sequence[float], baseline: Sequence[float], lower_is_better: Sequence[bool] | None = None
) -> float:
    """Return Delta_m = 100/T sum_t (-1)^l_t (M_t - B_t) / B_t, in per cent.

    A relative gain explodes where a baseline is near 0, so tell the table of the targets along with it.

    Args:
        scores: M_t, the model's metric of every target.
        baseline: B_t, that of the single-task models.
        lower_is_better: l_t, by target; None when more is better everywhere.

    Raises:
        MultituneError: lengths differ, no target, or a baseline that is not above 0.
    """
    lower = [False] * len(scores) if lower_is_better is None else lower_is_better
    if not scores or not len(scores) == len(baseline) == len(lower):
        raise MultituneError(
            f"There are {len(scores)} scores, {len(baseline)} baselines and {len(lower)} directions.",
            "multitask_gain",
            "Give one of each for every target, and at least one target.",
        )
    bad = [b for b in baseline if not b > 0]
    if bad:
        raise MultituneError(
            f"A relative gain over a baseline of {bad[0]:g} says nothing.",
            "multitask_gain",
            "Compare the targets one by one, or leave out those on which the baseline learned nothing.",
        )
    gains = [(b - m if less else m - b) / b for m, b, less in zip(scores, baseline, lower, strict=True)]
    return 100 * math.fsum(gains) / len(gains)
