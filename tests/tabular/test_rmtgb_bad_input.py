"""R-MTGB and what users get wrong: one clear sentence each, or an answer that the guide describes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from multitune.errors import MultituneError
from multitune.tabular import RMTGBClassifier, RMTGBRegressor

X = np.random.default_rng(0).normal(size=(30, 2))
Y = X[:, 0]
TASK = np.array(["a", "b", "c"] * 10)


def refused(told, estimator=None, X=X, y=Y, **fit):
    with pytest.raises(MultituneError, match=told) as caught:
        (estimator or RMTGBRegressor((1, 1, 1))).fit(X, y, **{"task": TASK, **fit})
    assert isinstance(caught.value, (ValueError, TypeError))
    assert caught.value.where and caught.value.mend.endswith(".")


def test_labels():
    refused("NaN", y=np.where(np.arange(30) == 4, np.nan, Y))
    refused("infinity", y=np.where(np.arange(30) == 4, np.inf, Y))
    refused("30 rows of X and 29 of y", y=Y[:29])
    refused("y to be passed", y=None)
    classifier = RMTGBClassifier((1, 1, 1))
    refused("NaN, first in row 3", classifier, y=np.array(["a", "b", "a", None] + ["b"] * 26, dtype=object))
    refused("one class, 'yes'", classifier, y=np.array(["yes"] * 30))
    refused("continuous", classifier, y=Y)
    refused("could not convert string", y=np.array(["yes"] * 30))


def test_tasks():
    refused("task is missing, first in row 1", task=["a", None] + ["b"] * 28)
    refused("task is missing, first in row 0", task=[np.nan] + [1.0] * 29)
    refused("29 tasks for 30 rows", task=TASK[:29])
    refused("2 dimensions", task=np.ones((30, 2)))
    refused("cannot be a category", task=[{"a": 1}] * 30)
    refused("given twice", RMTGBRegressor(task_column=0))
    refused("no column 'shop'", RMTGBRegressor(task_column="shop"), task=None)
    refused("no feature", RMTGBRegressor(task_column=0), X=X[:, :1], task=None)
    booster = RMTGBRegressor((1, 1, 1)).fit(X, Y, task=TASK)
    with pytest.raises(MultituneError, match="fitted with 3 tasks, and no task is given"):
        booster.predict(X)
    with pytest.raises(MultituneError, match="fitted without tasks"):
        RMTGBRegressor((1, 1, 1)).fit(X, Y).predict(X, task=TASK)


def test_tables():
    refused("infinity, first in row 2", X=np.where(np.arange(30)[:, None] == 2, np.inf, X))
    refused("stands 2 times", X=pd.DataFrame(X, columns=["a", "a"]))
    refused("several types", X=pd.DataFrame(X, columns=["a", 1]))
    refused("exact engine splits by numbers", RMTGBRegressor(engine="exact"), X=pd.DataFrame({"a": ["x", "y"] * 15}))
    booster = RMTGBRegressor((1, 1, 1)).fit(pd.DataFrame(X, columns=["a", "b"]), Y, task=TASK)
    with pytest.raises(MultituneError, match="'red' is no number, and the column was one at fit"):
        booster.predict(pd.DataFrame({"a": ["red"], "b": [1.0]}), task=["a"])
    with pytest.raises(MultituneError, match="expecting 2 features"), pytest.warns(UserWarning, match="feature names"):
        booster.predict(X[:, :1], task=TASK)


def test_weights():
    refused("do not fit 30 rows", sample_weight=np.ones(29))
    refused("weight is -1", sample_weight=np.where(np.arange(30) == 1, -1, 1))
    refused("weight is nan", sample_weight=np.where(np.arange(30) == 1, np.nan, 1))
    refused("non-zero", sample_weight=np.zeros(30))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_estimators", 100),
        ("n_estimators", (0, 0, 0)),
        ("n_estimators", (1, -1, 1)),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("max_depth", 0),
        ("max_depth", None),
        ("engine", "lightgbm"),
        ("min_samples_leaf", 0),
        ("l2", -1),
        ("max_bins", 256),
        ("n_init", 0),
        ("theta_reduction", "max"),
        ("theta_clip", 0),
        ("early_stopping", "auto"),
        ("validation_fraction", 1),
        ("unseen_task", "ignore"),
    ],
)
def test_settings(name, value):
    refused(f"^{name} is ", RMTGBRegressor(**{name: value}))


def test_theta0():
    refused("shape", RMTGBRegressor(theta0=[0.1, 0.2]))
    refused("lacks 'c'", RMTGBRegressor(theta0={"a": 1, "b": 2, "d": 3}))
    refused("names tasks that are not", RMTGBRegressor(theta0={"a": 1, "b": 2, "c": 3, "d": 3}))
    refused("finite", RMTGBRegressor(theta0=[np.nan, 0, 0]))


def test_evaluation_sets():
    refused("not \\(X, y\\)", eval_set=X)
    elsewhere = (X, Y, ["z"] * 30)
    refused("1 tasks were not there at fit", eval_set=elsewhere)
    with pytest.warns(UserWarning, match="get what is shared"):
        refused("tasks that the training rows have not", RMTGBRegressor(unseen_task="shared"), eval_set=elsewhere)
    refused("none can be kept aside", RMTGBRegressor(early_stopping=True, validation_fraction=1e-9))


def test_a_task_with_one_row_and_a_task_of_one_class():
    task = np.array(["alone"] + ["many"] * 29)
    booster = RMTGBRegressor((0, 5, 200), random_state=0, early_stopping=False).fit(X, Y, task=task)
    assert booster.predict(X[:1], task=["alone"])[0] == pytest.approx(Y[0], abs=1e-6)
    assert np.isnan(booster.score_per_task(X, Y, task)["alone"])
    assert np.isfinite(booster.score(X, Y, task))
    stopping = RMTGBRegressor((0, 5, 5), early_stopping=True, validation_fraction=0.5, random_state=0)
    assert len(stopping.fit(X, Y, task=task).tasks_) == 2
    label = np.where(task == "alone", "no", np.where(Y > 0, "yes", "no"))
    label[TASK == "a"] = "yes"
    classifier = RMTGBClassifier((0, 5, 50), random_state=0).fit(X, label, task=TASK)
    assert set(classifier.predict(X[TASK == "a"], task=TASK[TASK == "a"])) == {"yes"}
    assert classifier.predict_proba(X, task=TASK).shape == (30, 2)


def test_a_class_that_was_not_there_at_fit():
    label = np.where(Y > 0, "yes", "no")
    classifier = RMTGBClassifier((1, 1, 1)).fit(X, label, task=TASK)
    with pytest.raises(MultituneError, match="class 'maybe' was not there at fit"):
        classifier.score(X, np.where(Y > 1, "maybe", label), task=TASK)


def test_a_task_whose_rows_weigh_nothing_is_not_there():
    booster = RMTGBRegressor((1, 1, 1)).fit(X, Y, task=TASK, sample_weight=(TASK != "b").astype(float))
    assert booster.tasks_.tolist() == ["a", "c"]
