"""Ways of sharing between tasks, compared on held-out rows, and the baselines among them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMRegressor
from sklearn.ensemble import HistGradientBoostingRegressor

from multitune.errors import MultituneError
from multitune.tabular import RMTGBRegressor, TaskBaseline, compare_tasks, make_multitask_tables


@pytest.fixture(scope="module")
def tables():
    return make_multitask_tables(tasks=4, outliers=1, features=3, rows=60, test_rows=50, seed=1)


class Constant:
    """Answers one number, and counts what it was fitted to."""

    def __init__(self, value=0.0):
        self.value = value

    def get_params(self, deep=False):
        return {"value": self.value}

    def fit(self, X, y, task):
        return self

    def predict(self, X, task):
        return np.full(len(X), self.value)


def test_the_numbers_of_a_comparison():
    task = ["a"] * 4 + ["b"] * 4
    y = np.array([1.0, 1, 1, 1, 3, 3, 3, 3])
    X = np.arange(8.0)[:, None]
    methods = {"zero": Constant(0.0), "two": Constant(2.0), "one": Constant(1.0)}
    result = compare_tasks(X, y, task, folds=2, kind="regression", methods=methods, reference="zero")
    assert result.metric == "rmse"
    assert result.per_task.loc["a"].tolist() == [1, 1, 0] and result.per_task.loc["b"].tolist() == [3, 1, 2]
    line = result.summary.loc["one"]
    assert line["rmse"] == pytest.approx(np.sqrt(2)) and line["mean"] == 1
    assert line["rank"] == 1.5 and line["best"] == 1
    assert line["saved"] == pytest.approx(60) == line["low"] == line["high"]  # every row of a task errs alike
    assert line["gain"] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert result.summary.loc["two", "rank"] == pytest.approx((2.5 + 1) / 2)
    assert result.recommended == "two" and result.advice.startswith("Use two: rmse 1, 80.0 % [80.0, 80.0] less")
    assert result.outliers is None


def test_the_plainest_of_equals_is_recommended(tables):
    rows = tables.train
    methods = {"plain": Constant(0.0), "same": Constant(1e-9)}
    result = compare_tasks(rows.X, rows.y, rows.task, methods=methods, reference="plain")
    assert result.recommended == "plain"


def test_r_mtgb_is_recommended_where_tasks_do_not_belong():
    tables = make_multitask_tables(rows=100, test_rows=100)
    train, test = tables.train, tables.test
    methods = {
        "LightGBM per task": TaskBaseline(n_estimators=60),
        "LightGBM pooled": TaskBaseline(sharing="pooled", n_estimators=60),
        "R-MTGB": RMTGBRegressor(random_state=0),
    }
    result = compare_tasks(train.X, train.y, train.task, test=(test.X, test.y, test.task), methods=methods)
    assert result.recommended == "R-MTGB"
    assert "belong least: " in result.advice and set(result.outliers.index[:2]) == {8, 9}
    error = test.y - RMTGBRegressor(random_state=0).fit(train.X, train.y, task=train.task).predict(test.X, test.task)
    assert result.summary.loc["R-MTGB", "rmse"] == pytest.approx(np.sqrt(np.mean(error**2)))
    assert "R-MTGB" in str(result) and "Use R-MTGB" in str(result)


def test_every_standard_method_on_words_gaps_and_classes():
    random = np.random.default_rng(0)
    X = pd.DataFrame({"n": random.normal(size=120), "word": random.choice(["x", "y", None], 120)})
    X["shop"] = random.choice(["north", "south"], 120)
    y = np.where((X.n > 0) | (X.word == "x"), "buys", "leaves")
    X.loc[::7, "n"] = np.nan
    result = compare_tasks(X, y, task_column="shop", folds=2)
    assert result.metric == "accuracy" and result.per_task.index.tolist() == ["north", "south"]
    assert len(result.summary) == 9 and (result.summary["accuracy"] > 0.6).all()


@pytest.mark.parametrize("engine", ["lightgbm", "sklearn"])
def test_a_baseline_is_the_engine_itself(tables, engine):
    rows, test = tables.train, tables.test
    own = rows.task == 2
    if engine == "lightgbm":
        settings = {"n_estimators": 20, "num_leaves": 8, "min_child_samples": 5, "verbose": -1, "n_jobs": 1}
        alone = LGBMRegressor(**settings, max_depth=3, random_state=0)
    else:
        alone = HistGradientBoostingRegressor(
            max_iter=20, max_depth=3, max_leaf_nodes=None, min_samples_leaf=5, early_stopping=False, random_state=0
        )
    alone.fit(rows.X[own], rows.y[own])
    baseline = TaskBaseline(engine, "per_task", n_estimators=20).fit(rows.X, rows.y, rows.task)
    here = test.task == 2
    np.testing.assert_allclose(baseline.predict(test.X[here], test.task[here]), alone.predict(test.X[here]))
    pooled = TaskBaseline(engine, "pooled", n_estimators=20).fit(rows.X, rows.y, rows.task)
    np.testing.assert_array_equal(pooled.predict(test.X, test.task), pooled.predict(test.X, np.full(len(test.y), 9)))
    feature = TaskBaseline(engine, "task_as_feature", n_estimators=20).fit(rows.X, rows.y, rows.task)
    assert np.any(feature.predict(test.X[:5], [0] * 5) != feature.predict(test.X[:5], [3] * 5))


def test_a_baseline_of_a_task_with_one_class():
    X, task = np.arange(20.0)[:, None], ["a"] * 10 + ["b"] * 10
    y = np.array(["no"] * 10 + ["no", "yes"] * 5)
    baseline = TaskBaseline(n_estimators=2).fit(X, y, task)
    assert set(baseline.predict(X[:10], task[:10])) == {"no"}
    np.testing.assert_allclose(baseline.predict_proba(X, task).sum(axis=1), 1)
    lone = TaskBaseline(n_estimators=2).fit(X[:11], np.arange(11.0), ["a"] * 10 + ["b"])
    assert lone.predict(X[:1], ["b"]) == [10.0]


def test_what_is_refused(tables):
    X, y, task = tables.train.X, tables.train.y, tables.train.task
    for told, arguments in (
        ("No tasks are given", {"task": None}),
        ("1 folds", {"folds": 1}),
        ("no method 'LightGBM per tasks'. Did you mean 'LightGBM per task'", {"reference": "LightGBM per tasks"}),
        ("kind is 'rank'", {"kind": "rank"}),
        ("2 targets", {"y": np.stack([y, y], axis=1), "kind": "regression"}),
        ("1 tasks have a single row", {"task": [9, *task[1:]]}),
    ):
        with pytest.raises(MultituneError, match=told):
            compare_tasks(**{"X": X, "y": y, "task": task, **arguments})
    with pytest.raises(MultituneError, match="engine is 'xgboost'"):
        TaskBaseline("xgboost").fit(X, y, task)
    with pytest.raises(MultituneError, match="400 tasks are more than the 255"):
        TaskBaseline("sklearn", "task_as_feature").fit(np.ones((400, 1)), np.arange(400.0), np.arange(400))
    with pytest.raises(MultituneError, match="not there at fit, 7 among them"):
        TaskBaseline(n_estimators=1).fit(X, y, task).predict(X[:1], [7])
