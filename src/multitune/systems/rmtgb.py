"""System 3, R-MTGB: boosted trees that share between tasks and find those that do not belong.

The small reproduction draws ten tasks, two of which follow another function, and compares R-MTGB with itself without
its second block, with a second block that does not learn, and with LightGBM in the two ways in which people use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Metrics
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from multitune.tabular.boosting_blocks import Floats
    from multitune.tabular.multitask_tables import MultitaskTables

TABLE = {"tasks": 10, "outliers": 2, "features": 5, "rows": 100, "test_rows": 500}
BOOSTING = {"max_depth": 3, "learning_rate": 0.1}


def run(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Fit one arm on the tables of a seed and measure it on fresh rows.

    Returns:
        ``rmse``: over all test rows; ``inliers``, ``outliers``: over those of the tasks of each side; ``auc``: how well
        the outlier score tells the two sides apart, nan where there is none.
    """
    import numpy as np

    from multitune.tabular.multitask_tables import make_multitask_tables

    tables = make_multitask_tables("outliers", **settings["table"], seed=seed)
    fit = _lightgbm if "lightgbm" in settings else _rmtgb
    predicted, outlier_score = fit(tables, settings, seed)
    squared = (predicted - tables.test.y) ** 2
    of_outlier = tables.is_outlier[tables.test.task]
    return {
        "rmse": float(np.sqrt(squared.mean())),
        "inliers": float(np.sqrt(squared[~of_outlier].mean())),
        "outliers": float(np.sqrt(squared[of_outlier].mean())),
        "auc": math.nan if outlier_score is None else _area(outlier_score, tables.is_outlier),
    }


def _rmtgb(tables: MultitaskTables, settings: Mapping[str, Any], seed: int) -> tuple[Floats, Floats | None]:
    from multitune.tabular import RMTGBRegressor

    train, test = tables.train, tables.test
    chosen = {**settings["rmtgb"], "n_estimators": tuple(settings["rmtgb"]["n_estimators"])}
    booster = RMTGBRegressor(**chosen, random_state=seed).fit(train.X, train.y, task=train.task)
    score = booster.outlier_score_ if booster.n_iter_[1] else None
    return booster.predict(test.X, task=test.task), score


def _lightgbm(tables: MultitaskTables, settings: Mapping[str, Any], seed: int) -> tuple[Floats, None]:
    import numpy as np
    from lightgbm import LGBMRegressor

    def booster() -> LGBMRegressor:
        return LGBMRegressor(**settings["lightgbm"], random_state=seed, n_jobs=1, deterministic=True, verbose=-1)

    train, test = tables.train, tables.test
    if settings["pooled"]:
        place = tables.features
        fitted = booster().fit(np.column_stack([train.X, train.task]), train.y, categorical_feature=[place])
        return np.asarray(fitted.predict(np.column_stack([test.X, test.task]))), None
    predicted = np.empty(len(test.y))
    for task in range(len(tables.is_outlier)):
        own = booster().fit(train.X[train.task == task], train.y[train.task == task])
        predicted[test.task == task] = own.predict(test.X[test.task == task])
    return predicted, None


def _area(score: Floats, is_outlier: Any) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(is_outlier, score))


def _boosted(name: str, told: str, n_estimators: list[int], **more: Any) -> Arm:
    return Arm(name, told, {"table": TABLE, "rmtgb": {**BOOSTING, "n_estimators": n_estimators, **more}})


def _light(name: str, told: str, *, pooled: bool) -> Arm:
    # The row count of the task column's levels has to pass min_data_per_group, 100 by default.
    settings = {**BOOSTING, "n_estimators": 150, "min_child_samples": 5, "num_leaves": 8, "min_data_per_group": 5}
    return Arm(name, told, {"table": TABLE, "lightgbm": settings, "pooled": pooled})


ARMS = (
    _boosted("R-MTGB", "blocks of 0, 100 and 50 iterations", [0, 100, 50]),
    _boosted("frozen", "the same with theta as drawn", [0, 100, 50], theta_learning_rate=0.0),
    _boosted("late", "blocks of 50, 50 and 50", [50, 50, 50]),
    _boosted("MTGB", "without the second block: 50, 0 and 100", [50, 0, 100]),
    _boosted("STL", "one booster per task: 0, 0 and 150", [0, 0, 150]),
    _boosted("POOL", "one booster for all: 150, 0 and 0", [150, 0, 0]),
    _light("LightGBM per task", "150 trees each", pooled=False),
    _light("LightGBM pooled", "150 trees for all, with the task as a category", pooled=True),
)


def _saved(arms: Mapping[str, Metrics], *peers: str) -> float:
    """Return the share of the best peer's error that R-MTGB saves."""
    return 1 - arms["R-MTGB"]["rmse"] / min(arms[peer]["rmse"] for peer in peers)


CLAIMS = (
    Claim(
        "1",
        "R-MTGB errs 5 % less than MTGB, which is the same without the second block.",
        "1 - RMSE of R-MTGB / RMSE of MTGB",
        lambda arms: _saved(arms, "MTGB"),
        0.05,
    ),
    Claim(
        "2",
        "R-MTGB errs 12 % less than one booster per task.",
        "1 - RMSE of R-MTGB / RMSE of STL",
        lambda arms: _saved(arms, "STL"),
        0.12,
    ),
    Claim(
        "3",
        "R-MTGB errs 7 % less than LightGBM per task or with the task as a category, whichever is better.",
        "1 - RMSE of R-MTGB / RMSE of the better LightGBM of the seed",
        lambda arms: _saved(arms, "LightGBM per task", "LightGBM pooled"),
        0.07,
    ),
    Claim(
        "4",
        "The outlier score tells the tasks that follow another function from the others with an AUC of 0.95.",
        "AUC of the outlier score over the ten tasks",
        lambda arms: arms["R-MTGB"]["auc"],
        0.95,
    ),
)

SYSTEM = System(
    3,
    "R-MTGB",
    "Robust Multi-Task Gradient Boosting",
    "Expert Systems with Applications, 2025",
    "Boosted trees share strength between related tasks and find those that do not belong.",
    "tabular",
    Account(
        published=(
            "On five regression tables R-MTGB's RMSE is 2.302 (abalone), 10.169 (school), 0.2589 (parkinson), 2.518 "
            "(computer) and 14.75 (sarcos), against 2.323, 10.193, 0.3053, 2.541 and 18.55 without the second block "
            "and 2.364, 10.347, 0.2518, 2.798 and 8.117 with one booster per task.",
            "Its mean rank over 377 regression tasks is 1.87, against 2.02 and 2.11; over 95 classification tasks "
            "1.93, against 2.08 and 2.00.",
            "The learned weights set the tasks of a synthetic table that follow another function apart.",
        ),
        faithful=(
            "The three blocks, their targets, the gradient on theta and its order of updates are the paper's; theta "
            "starts at 0.1 times a normal number and moves by the sum of its gradient, at the trees' learning rate.",
            "All functions start at 0, leaves are means, and nothing is subsampled.",
            "The tables are the paper's fourth scenario: 0.9 of a common function and 0.1 of a task's own, the two "
            "outliers with another common function, functions of 500 random Fourier features.",
        ),
        deviates=(
            "Trees have three levels in place of one, and there are 100 training rows per task in place of 300: with "
            "stumps on 300 rows all methods lie within 2 % of one another.",
            "Trees are grown on features binned once, not by sorting; a test holds them to the exact ones.",
            "The outlier score is 2 sigmoid(|theta - median|) - 1, as theta and -theta are the same model; the paper "
            "orients theta by hand.",
            "The nine real tables of the paper are not part of this reproduction; two of them are measured in the "
            "guide to tables.",
        ),
        found=(
            "The second block pays: without it, or with its theta as drawn, the error is larger in every seed. On the "
            "mean of the seeds the margin over the better LightGBM is above what was asked for, and the interval "
            "reaches below it.",
            "A booster that sees the task as a category is the strongest of the others: a category alone tells the "
            "outliers apart. Per-task boosters, of either library, come after it.",
            "A first block before the second learns from the outliers too; the arm called late loses most of the gain.",
        ),
        used="""
from multitune.tabular import RMTGBRegressor

booster = RMTGBRegressor(task_column="store").fit(table, sales)
print(booster.task_table())
""",
        used_in="python",
        scales={
            "small": Scale(
                "Fits eight boosters to ten tasks of 100 rows each and measures them on 500 rows per task, on one CPU "
                "core; ten seeds take less than a minute.",
                ARMS,
                CLAIMS,
                run,
                (
                    "rmse is over all test rows, inliers and outliers over those of the eight and of the two tasks.",
                    "auc is that of the outlier score; arms without a second block have none.",
                ),
                seeds=10,
            ),
        },
    ),
)
