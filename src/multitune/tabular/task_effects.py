"""What a fitted R-MTGB does with a feature, task by task and in what is shared: partial dependence and importance.

Shape legend: ``N`` rows, ``G`` values of a feature, ``K`` outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from multitune.errors import nearest
from multitune.tabular.boosting_blocks import combined
from multitune.tabular.boosting_estimator import RobustBooster
from multitune.tabular.boosting_losses import SoftmaxLoss, softmax
from multitune.tabular.multitab_columns import Level, TableError

Floats = npt.NDArray[np.float64]

SHARED = "shared"
UNSEEN = -1  # place of a task that was not there at fit: what is shared, in the mixture of the median task
MOST_ROWS = 500  # by which a partial dependence is averaged, when there are more


def partial_dependence(
    booster: RobustBooster, X: Any, feature: str | int, task: Any = None, *, grid: int = 20, output: int = -1
) -> pd.DataFrame:
    """Return the mean answer when a feature is set to a value for all rows: for every task, and for what is shared.

    All tasks are asked about the same rows, so that their columns differ by what was learned and by nothing else.

    Args:
        X, task: rows as at fit, the tasks only for their form; more than 500 rows are thinned out evenly.
        feature: name of the column, or its place among the features.
        grid: values between the 5 % and the 95 % quantile of a numeric feature; of a category each level.
        output: the column of several outputs, or the class, by place; the last one, which is the positive one of two.

    Returns:
        One row per value, one column per task, and "shared": what a task in the middle gets without a part of its own.
        Answers are numbers, or probabilities of the class.
    """
    encoded, _ = booster._encoded(X, task)
    encoded = encoded[:: max(1, -(-len(encoded) // MOST_ROWS))].copy()
    place = feature_place(booster, feature)
    levels = booster.features_[place].levels
    values_G = _grid(encoded[:, place], grid) if levels is None else np.arange(1.0, len(levels) + 1)
    columns: dict[Level, list[float]] = {name: [] for name in [*booster.tasks_.tolist(), SHARED]}
    for value in values_G:
        encoded[:, place] = value
        values = booster._values(encoded, np.full(len(encoded), UNSEEN))
        for number, name in enumerate(columns):
            own = number if name != SHARED else UNSEEN
            tasks = np.full(len(encoded), own)
            h = np.zeros_like(values["h"])
            booster.boosted_.trees["h"].add_to(h, encoded, tasks)
            F_NK = combined({**values, "h": h}, booster._side_of(booster.theta_, tasks))
            answer_NK = softmax(F_NK) if isinstance(booster._loss, SoftmaxLoss) else F_NK
            columns[name].append(float(answer_NK[:, output].mean()))
    index = values_G if levels is None else list(levels)
    return pd.DataFrame(columns, index=pd.Index(index, name=booster.features_[place].name))


def feature_importance(
    booster: RobustBooster, X: Any, y: Any, task: Any = None, *, repeats: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Return by how much the mean loss rises when a feature's values change places among a task's rows.

    Args:
        X, y, task: rows, better not those of the fit.
        repeats: permutations that are averaged.
        seed: of the permutations.

    Returns:
        One row per feature; a column for every task that has rows, "all" for the mean over all rows, and "shared" for
        the same when only the shared blocks see the changed values, largest in "all" first. Losses are half the squared
        error, or the cross-entropy in nats.
    """
    encoded, place = booster._encoded(X, task)
    y_NK, s_N = booster._targets(y, len(encoded)), booster._side_of(booster.theta_, place)
    before = booster._values(encoded, place)
    loss_N = booster._loss.loss(y_NK, combined(before, s_N))
    random = np.random.default_rng(seed)
    by_task = [np.flatnonzero(place == one) for one in np.unique(place)]
    tasks = booster.tasks_[np.unique(place)].tolist()
    lines = {}
    for number, feature in enumerate(booster.features_):
        rise_N, shared_N = np.zeros(len(encoded)), np.zeros(len(encoded))
        for _ in range(repeats):
            changed = encoded.copy()
            for rows in by_task:
                changed[rows, number] = encoded[random.permutation(rows), number]
            after = booster._values(changed, place)
            rise_N += booster._loss.loss(y_NK, combined(after, s_N)) - loss_N
            shared_N += booster._loss.loss(y_NK, combined({**after, "h": before["h"]}, s_N)) - loss_N
        of_task = {task: float(rise_N[rows].mean()) for task, rows in zip(tasks, by_task, strict=True)}
        lines[feature.name] = {**of_task, "all": float(rise_N.mean()), SHARED: float(shared_N.mean())}
    table = pd.DataFrame.from_dict(lines, orient="index") / repeats
    return table.sort_values("all", ascending=False, kind="stable")


def feature_place(booster: RobustBooster, feature: str | int) -> int:
    """Return a feature's place.

    Raises:
        TableError: there is none of that name or place.
    """
    names = [one.name for one in booster.features_]
    if isinstance(feature, (int, np.integer)) and 0 <= feature < len(names):
        return int(feature)
    if feature in names:
        return names.index(str(feature))
    hint = nearest(str(feature), names)
    raise TableError(f"There is no feature {feature!r}.{hint}", "feature", f"The features are {', '.join(names)}.")


def _grid(column: Floats, grid: int) -> Floats:
    present = column[~np.isnan(column)]
    if not len(present):
        raise TableError("The feature is missing in every row.", "feature", "Give rows that have it.")
    distinct = np.unique(present)
    low, high = np.quantile(present, [0.05, 0.95])
    return distinct if len(distinct) <= grid else np.linspace(low, high, grid)
