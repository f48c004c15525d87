"""R-MTGB as an estimator: scikit-learn's own examination, tables of all kinds, and files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from multitune.errors import MultituneError
from multitune.tabular import RMTGBClassifier, RMTGBRegressor, make_multitask_tables

SMALL = {"n_estimators": (5, 60, 20)}


# Warnings of scikit-learn's own data are no errors here: the checks are about what the estimator does.
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([RMTGBRegressor(**SMALL), RMTGBClassifier(**SMALL)])
def test_what_scikit_learn_asks(estimator, check):
    check(estimator)


@pytest.fixture
def stores():
    """Sales of four stores: numbers, words, gaps; the last store sells what the others do not."""
    random = np.random.default_rng(0)
    X = pd.DataFrame({"price": random.normal(size=200), "day": random.choice(["mon", "sat", None], 200)})
    X["rain"] = random.random(200) < 0.3
    store = pd.Series(random.choice(["a", "b", "c", "d"], 200), name="store")
    y = np.where(store == "d", X.price, -X.price) + (X.day == "sat") + 0.1 * random.normal(size=200)
    X.loc[::9, "price"] = np.nan
    return X, y, store


def fitted(stores, **settings):
    X, y, store = stores
    return RMTGBRegressor((0, 20, 10), random_state=0, **settings).fit(X, y, task=store)


def test_parameters_are_stored_cloned_and_pickled(stores):
    X, _, store = stores
    booster = RMTGBClassifier((1, 2, 3), engine="exact", theta_clip=2.0)
    assert clone(booster).get_params() == booster.get_params()
    assert set(RMTGBRegressor().get_params()) == set(RMTGBClassifier().get_params())
    booster = fitted(stores)
    again = pickle.loads(pickle.dumps(booster))
    np.testing.assert_array_equal(again.predict(X, task=store), booster.predict(X, task=store))


def test_the_kind_of_table_does_not_matter(stores):
    X, y, store = stores
    expected = fitted(stores).predict(X, task=store)
    frame = pl.from_pandas(X)
    booster = RMTGBRegressor((0, 20, 10), random_state=0).fit(frame, pl.Series(y), task=pl.Series(list(store)))
    np.testing.assert_array_equal(booster.predict(frame, task=list(store)), expected)
    numbers = X.assign(day=X.day.map({"mon": 0.0, "sat": 1.0}), rain=X.rain.astype(float))
    by_name = RMTGBRegressor((0, 20, 10), random_state=0).fit(numbers, y, task=store).predict(numbers, task=store)
    matrix = numbers.to_numpy()
    by_place = RMTGBRegressor((0, 20, 10), random_state=0).fit(matrix, y, task=store).predict(matrix, task=store)
    np.testing.assert_array_equal(by_name, by_place)


def test_columns_are_found_by_name(stores):
    X, _, store = stores
    booster = fitted(stores)
    expected = booster.predict(X, task=store)
    np.testing.assert_array_equal(booster.predict(X[["rain", "price", "day"]], task=store), expected)
    with pytest.warns(UserWarning, match="not used: more"):
        np.testing.assert_array_equal(booster.predict(X.assign(more=1), task=store), expected)
    with pytest.raises(MultituneError, match="columns price were there at fit"):
        booster.predict(X.drop(columns="price"), task=store)


def test_the_column_of_tasks_may_be_part_of_the_table(stores):
    X, y, store = stores
    expected = fitted(stores).predict(X, task=store)
    table = X.assign(store=store)
    by_name = RMTGBRegressor((0, 20, 10), task_column="store", random_state=0).fit(table, y)
    np.testing.assert_array_equal(by_name.predict(table[["store", "rain", "day", "price"]]), expected)
    assert by_name.n_features_in_ == 4 and [feature.name for feature in by_name.features_] == ["price", "day", "rain"]
    numbers = np.column_stack([pd.factorize(store, sort=True)[0], X.price])
    by_place = RMTGBRegressor((0, 20, 10), task_column=0, random_state=0).fit(numbers, y)
    given = RMTGBRegressor((0, 20, 10), random_state=0).fit(numbers[:, 1:], y, task=store)
    np.testing.assert_array_equal(by_place.predict(numbers), given.predict(numbers[:, 1:], task=store))
    np.testing.assert_array_equal(numbers[:, 0], pd.factorize(store, sort=True)[0])


def test_a_pipeline_in_a_grid_search(stores):
    X, y, store = stores
    table = X.assign(store=store)
    pipeline = make_pipeline(FunctionTransformer(), RMTGBRegressor(task_column="store", random_state=0))
    grid = {"rmtgbregressor__n_estimators": [(0, 0, 5), (0, 10, 5)], "rmtgbregressor__max_depth": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(table, y)
    assert search.best_params_["rmtgbregressor__n_estimators"] in [(0, 0, 5), (0, 10, 5)]
    assert search.predict(table).shape == (200,)


def test_tasks_by_metadata_routing(stores):
    X, y, store = stores
    with sklearn.config_context(enable_metadata_routing=True):
        booster = RMTGBRegressor(random_state=0)
        booster.set_fit_request(task=True).set_score_request(task=True)
        search = GridSearchCV(booster, {"n_estimators": [(0, 0, 5), (0, 10, 5)]}, cv=2)
        search.fit(X, y, task=store.to_numpy())
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_unseen_tasks_are_refused_or_answered_by_what_is_shared(stores):
    X, _, store = stores
    other = np.where(store == "a", "e", store)
    with pytest.raises(MultituneError, match="1 tasks were not there at fit: 'e'"):
        fitted(stores).predict(X, task=other)
    booster = fitted(stores, unseen_task="shared")
    with pytest.warns(UserWarning, match="get what is shared: 'e'"):
        answers = booster.predict(X, task=other)
    known = (store != "a").to_numpy()
    np.testing.assert_array_equal(answers[known], booster.predict(X, task=store)[known])
    with pytest.warns(UserWarning, match="get what is shared"):
        parts = booster.parts(X[~known], task=other[~known])
    np.testing.assert_array_equal(parts["own"], 0)
    assert np.abs(parts["robust"]).max() > 0


def test_tasks_that_are_absent_at_prediction(stores):
    X, _, store = stores
    booster = fitted(stores)
    here = (store == "c").to_numpy()
    np.testing.assert_array_equal(booster.predict(X[here], task=store[here]), booster.predict(X, task=store)[here])


def test_unseen_and_missing_categories_are_answered(stores):
    X, _, store = stores
    booster = fitted(stores)
    unseen = booster.predict(X.assign(day="sun"), task=store)
    np.testing.assert_array_equal(unseen, booster.predict(X.assign(day=None), task=store))
    assert np.isfinite(unseen).all()


def test_categories_split_by_their_means():
    letters = np.array(list("abcdef") * 20)
    y = np.isin(letters, ["a", "d", "f"]).astype(float)
    X = pd.DataFrame({"letter": letters})
    booster = RMTGBRegressor((1, 0, 0), 1.0, 1).fit(X, y)
    np.testing.assert_allclose(booster.predict(X), y, atol=1e-12)  # one split; as numbers it would take five
    proba = RMTGBClassifier((1, 0, 0), 1.0, 1).fit(X, y).predict(X)
    np.testing.assert_array_equal(proba, y)


def test_many_levels_leave_the_rare_ones_as_missing():
    words = [f"w{i % 400}" for i in range(1400)]  # w0 to w199 four times, the others three times
    booster = RMTGBRegressor((0, 0, 3)).fit(pd.DataFrame({"word": words}), np.arange(1400.0))
    levels = booster.features_[0].levels
    assert len(levels) == 255 and {f"w{i}" for i in range(200)} <= set(levels)


@pytest.mark.parametrize("kind", ["numbers", "outputs", "classes"])
def test_saved_and_loaded(stores, tmp_path, kind):
    X, y, store = stores
    if kind == "classes":
        y = np.where(y > 0, "gain", "loss")
        booster = RMTGBClassifier((2, 5, 3), random_state=0, theta0={"a": 0.1, "b": 0.2, "c": 0, "d": -1})
    else:
        y = np.stack([y, 2 * y], axis=1) if kind == "outputs" else y
        booster = RMTGBRegressor((2, 5, 3), random_state=np.random.RandomState(0))
    booster.fit(X, y, task=store).save(tmp_path / "model")
    again = type(booster).load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(X, task=store), booster.predict(X, task=store))
    assert np.shape(again.predict(X, task=store)) == np.shape(y)
    np.testing.assert_array_equal(again.outlier_score_, booster.outlier_score_)
    pd.testing.assert_series_equal(again.score_per_task(X, y, store), booster.score_per_task(X, y, store))
    assert again.n_iter_ == (2, 5, 3) and again.training_loss_ == booster.training_loss_
    np.testing.assert_array_equal(
        list(again.staged_predict(X, task=store))[1], list(booster.staged_predict(X, task=store))[1]
    )
    if kind == "classes":
        assert again.classes_.tolist() == ["gain", "loss"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "trees.safetensors"]


def test_files_that_cannot_be_read(stores, tmp_path):
    folder = tmp_path / "model"
    fitted(stores).save(folder)
    facts = json.loads((folder / "model.json").read_text())
    with pytest.raises(MultituneError, match="holds a RMTGBRegressor"):
        RMTGBClassifier.load(folder)
    with pytest.raises(MultituneError, match="no saved estimator"):
        RMTGBRegressor.load(tmp_path)
    for change, told in (
        ({"format": 2}, "newer version, in format 2"),
        ({"format": None}, "names no format"),
        ({"trees_sha256": "0"}, "not those that model.json was written with"),
    ):
        (folder / "model.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(MultituneError, match=told):
            RMTGBRegressor.load(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(MultituneError, match="no JSON"):
        RMTGBRegressor.load(folder)
    (folder / "model.json").write_text(json.dumps(facts))
    (folder / "trees.safetensors").unlink()
    with pytest.raises(MultituneError, match="file of the trees is missing"):
        RMTGBRegressor.load(folder)


def test_scores_are_means_over_tasks(stores):
    X, y, store = stores
    booster = fitted(stores)
    by_task = booster.score_per_task(X, y, store)
    assert by_task.index.tolist() == ["a", "b", "c", "d"]
    assert booster.score(X, y, store) == pytest.approx(by_task.mean())
    from sklearn.metrics import r2_score

    here = (store == "b").to_numpy()
    assert by_task["b"] == pytest.approx(r2_score(y[here], booster.predict(X[here], task=store[here])))


def test_scores_that_say_little_are_told():
    tables = make_multitask_tables(tasks=5, outliers=1, features=3, rows=60, test_rows=50, seed=1)
    X, y, task = tables.train.X, 100 * tables.train.y, tables.train.task
    with pytest.warns(UserWarning, match="theta_standardize=True"):
        RMTGBRegressor((0, 20, 0), random_state=0).fit(X, y, task=task).task_table()
    in_its_unit, in_another = (
        RMTGBRegressor((0, 20, 0), theta_standardize=True, random_state=0).fit(X, unit * y, task=task).task_table()
        for unit in (1.0, 0.01)
    )
    pd.testing.assert_frame_equal(in_its_unit, in_another, rtol=1e-6)


def test_the_wing_loads_nothing_heavy():
    program = (
        "import sys, multitune, multitune.tabular, multitune.cli; "
        "print([name for name in ('sklearn', 'numba', 'torch', 'lightgbm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_package_is_named():
    program = "import sys; sys.modules['numba'] = None; import multitune.tabular; multitune.tabular.RMTGBRegressor"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "RMTGBRegressor needs numba, which is not installed." in result.stderr
    assert "pip install 'multitune[tables]'" in result.stderr
