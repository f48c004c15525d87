"""MultiTab-Net as an estimator: mixed targets, missing labels, tables of every make, early stopping, and bad input."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from multitune.errors import MultituneError
from multitune.tabular import MultiTabNet, MultiTabNetClassifier, MultiTabNetRegressor
from multitune.tabular.multitab_columns import TableError, TableTypeError
from multitune.tabular.multitab_schema import infer_kind
from multitune.tabular.network_inputs import validation_rows

QUICK = {
    "initialisation": "torch",
    "embed_dim": 8,
    "heads": 2,
    "ff_dim": 16,
    "tower": (16,),
    "epochs": 2,
    "learning_rate": 1e-2,
    "random_state": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def learned() -> tuple[MultiTabNet, pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(0)
    X = pd.DataFrame(random.normal(size=(400, 3)), columns=["a", "b", "c"])
    X["word"] = random.choice(["x", "y", None], 400)
    Y = pd.DataFrame({"value": 1e6 + 200 * X.a + 100 * (X.word == "x"), "answer": np.where(X.b > 0, "yes", "no")})
    Y["grade"] = np.digitize(X.c, [-0.5, 0.5]).astype(float)
    Y.loc[::7, "value"], Y.loc[::5, "answer"], Y.loc[::3, "grade"] = np.nan, None, np.nan
    return MultiTabNet(**{**QUICK, "epochs": 25}).fit(X, Y), X, Y


def test_it_learns_targets_of_three_kinds_at_once(learned):
    estimator, X, Y = learned
    assert [target.kind for target in estimator.targets_] == ["regression", "binary", "multiclass"]
    table = estimator.evaluate(X, Y)
    assert table.loc["value", "explained_variance"] > 0.97
    assert table.loc["answer", "auroc"] > 0.98
    assert table.loc["grade", "auroc"] > 0.95
    assert table["rows"].tolist() == [342, 320, 266]
    assert estimator.score(X, Y) == pytest.approx(
        (table.loc["value", "r2"] + table.loc["answer", "accuracy"] + table.loc["grade", "accuracy"]) / 3
    )


def test_predictions_are_in_the_targets_own_words_and_units(learned):
    estimator, X, _ = learned
    predicted = estimator.predict(X.iloc[5:9])
    assert list(predicted.index) == [5, 6, 7, 8]
    assert predicted["value"].between(9.9e5, 1.01e6).all() and predicted["value"].dtype == np.float64
    assert set(predicted["answer"]) <= {"yes", "no"}
    assert set(predicted["grade"]) <= {0.0, 1.0, 2.0}
    probabilities = estimator.predict_proba(X)
    assert {name: array.shape for name, array in probabilities.items()} == {"answer": (400, 2), "grade": (400, 3)}
    np.testing.assert_allclose(probabilities["grade"].sum(axis=1), 1, rtol=1e-5)
    likeliest = estimator.classes_["answer"][probabilities["answer"].argmax(axis=1)]
    assert (likeliest == estimator.predict(X)["answer"]).all()


def test_columns_are_found_by_name(learned):
    estimator, X, _ = learned
    expected = estimator.predict(X)
    pd.testing.assert_frame_equal(estimator.predict(X[["word", "c", "a", "b"]]), expected)
    with pytest.warns(UserWarning, match="not there at fit are not used: more"):
        pd.testing.assert_frame_equal(estimator.predict(X.assign(more=1)), expected)
    with pytest.raises(TableError, match=r"columns b were there at fit.*Did you mean 'bb'"):
        estimator.predict(X.rename(columns={"b": "bb"}))


def test_unknown_and_missing_categories_have_codes_of_their_own(learned):
    estimator, X, _ = learned
    feature = estimator.features_[3]
    assert (feature.levels, feature.missing_code, feature.codes) == (("x", "y"), 3, 4)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        by_place = estimator.predict(X.head(3).to_numpy())
    pd.testing.assert_frame_equal(by_place, estimator.predict(X.head(3)))
    unseen = [estimator.predict(X.head(1).assign(word=word))["value"][0] for word in ("z", "other")]
    assert unseen[0] == unseen[1]
    table = estimator.networks_[0].tokeniser.table.weight
    torch.testing.assert_close(table[0], table[1:4].mean(dim=0))


def test_labels_come_by_place_where_one_side_has_no_names(learned):
    estimator, X, Y = learned
    assert estimator.score(X, Y.to_numpy()) == pytest.approx(estimator.score(X, Y))
    single = MultiTabNetRegressor(**QUICK).fit(X[["a"]], X["b"])
    assert single.targets_[0].name == "b" and single.predict(X[["a"]]).shape == (400,)
    assert single.score(X[["a"]], X["b"].to_numpy()) == single.score(X[["a"]], X["b"].rename("c"))
    polars = pytest.importorskip("polars")
    assert MultiTabNetRegressor(**QUICK).fit(X[["a"]], polars.Series(X["b"])).predict(X[["a"]]).shape == (400,)


def test_a_device_that_is_not_there(regression_table):
    with pytest.raises(TableError, match="torch has no device 'abacus' here"):
        MultiTabNetRegressor(**{**QUICK, "device": "abacus"}).fit(*regression_table)


def test_scikit_learn_tells_which_features_matter_to_which_target(regression_table):
    from sklearn.inspection import partial_dependence, permutation_importance

    X, y = regression_table
    estimator = MultiTabNetRegressor(**{**QUICK, "epochs": 15}).fit(X, y)
    scoring = {t: lambda model, X, y, t=t: model.evaluate(X, y)["r2"].iloc[int(t)] for t in "01"}
    found = permutation_importance(estimator, X, y, scoring=scoring, n_repeats=2, random_state=0)
    assert [found[t].importances_mean.argmax() for t in "01"] == [0, 1]
    curves = partial_dependence(estimator, X, [0], grid_resolution=5)["average"]
    assert np.ptp(curves[0]) > 5 * np.ptp(curves[1])


def test_the_same_seed_gives_the_same_model(mixed_table):
    X, Y = mixed_table
    state = torch.get_rng_state()
    first, second = (MultiTabNet(**QUICK, ff_dropout=0.1).fit(X, Y) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    pd.testing.assert_frame_equal(first.predict(X), second.predict(X))
    other = MultiTabNet(**{**QUICK, "random_state": 1}, ff_dropout=0.1).fit(X, Y)
    assert not first.predict(X).equals(other.predict(X))


@pytest.mark.parametrize("make", ["polars", "arrow", "dictionary of labels"])
def test_tables_of_every_make_give_the_same_model(mixed_table, make):
    X, Y = mixed_table
    expected = MultiTabNet(**QUICK).fit(X, Y).predict(X)
    if make == "polars":
        polars = pytest.importorskip("polars")
        features, labels = polars.from_pandas(X), polars.from_pandas(Y)
    elif make == "arrow":
        import pyarrow

        features, labels = pyarrow.Table.from_pandas(X), pyarrow.Table.from_pandas(Y)
    else:
        features, labels = X, {name: list(Y[name]) for name in Y}
    predicted = MultiTabNet(**QUICK).fit(features, labels).predict(features)
    pd.testing.assert_frame_equal(predicted, expected, check_dtype=False)


def test_numbers_may_be_named_categories():
    X = np.array([[0, 1.5], [1, 2.5], [2, 0.5], [1, 1.0]] * 10)
    estimator = MultiTabNetRegressor(**QUICK, categorical_features=[0]).fit(X, X[:, 1])
    assert [feature.levels for feature in estimator.features_] == [(0.0, 1.0, 2.0), None]
    assert np.isfinite(estimator.predict([[7, 1.0]])).all()


def test_shapes_follow_those_of_y(regression_table):
    X, y = regression_table
    assert MultiTabNetRegressor(**QUICK).fit(X, y[:, 0]).predict(X).shape == (80,)
    assert MultiTabNetRegressor(**QUICK).fit(X, y[:, :1]).predict(X).shape == (80, 1)
    assert MultiTabNetRegressor(**QUICK).fit(X, y).predict(X).shape == (80, 2)
    classes = np.where(y > 0, "up", "down")
    single = MultiTabNetClassifier(**QUICK).fit(X, classes[:, 0])
    assert single.classes_.tolist() == ["down", "up"] and single.predict_proba(X).shape == (80, 2)
    double = MultiTabNetClassifier(**QUICK).fit(X, classes)
    assert [array.shape for array in double.predict_proba(X)] == [(80, 2), (80, 2)]
    assert double.predict(X).shape == (80, 2)


def test_rows_of_no_weight_are_as_if_they_were_not_there(regression_table):
    X, y = regression_table
    weights = np.ones(80)
    weights[60:] = 0
    weighted = MultiTabNetRegressor(**QUICK).fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(weighted.predict(X), MultiTabNetRegressor(**QUICK).fit(X[:60], y[:60]).predict(X))


def test_a_weight_of_zero_on_one_target_is_a_missing_label(regression_table):
    X, y = regression_table
    weights, missing = np.ones_like(y), y.copy()
    weights[::2, 0], missing[::2, 0] = 0, np.nan
    settings = {**QUICK, "epochs": 3}
    weighted = MultiTabNetRegressor(**settings).fit(X, y, sample_weight=weights)
    masked = MultiTabNetRegressor(**settings).fit(X, missing)
    # the two standardise the first target by other labels; the second one is alike
    np.testing.assert_allclose(weighted.predict(X)[:, 1], masked.predict(X)[:, 1], atol=0.2)


def test_early_stopping_keeps_the_best_epoch(mixed_table):
    X, Y = mixed_table
    estimator = MultiTabNet(**{**QUICK, "epochs": 40, "patience": 2}).fit(X, Y, eval_set=(X, Y))
    history = estimator.histories_[0]
    assert history.scores[history.best_epoch - 1] == max(history.scores)
    assert estimator.n_iter_ in (40, history.best_epoch + 2)
    table = estimator.evaluate(X, Y)
    score = table["auroc"].fillna(table["explained_variance"]).mean()
    assert score == pytest.approx(max(history.scores), abs=1e-6)


def test_a_share_of_every_class_is_kept_aside():
    labels = np.array([0.0] * 900 + [1.0] * 90 + [np.nan] * 10)[:, None]
    aside = validation_rows(labels, 0.1, seed=0)
    assert abs(aside[:900].sum() - 90) <= 1 and abs(aside[900:990].sum() - 9) <= 1
    assert not np.array_equal(aside, validation_rows(labels, 0.1, seed=1))


def test_attention_between_rows_predicts_every_row_alike_in_any_company(mixed_table):
    X, Y = mixed_table
    estimator = MultiTabNet(**QUICK, inter_sample="batch", context_rows=20).fit(X, Y)
    together = estimator.predict(X)["value"].to_numpy()
    alone = np.concatenate([estimator.predict(X.iloc[i : i + 1])["value"].to_numpy() for i in range(4)])
    np.testing.assert_allclose(together[:4], alone, rtol=1e-5)


def test_bfloat16_products_give_nearly_the_same(regression_table):
    X, y = regression_table
    exact = MultiTabNetRegressor(**{**QUICK, "epochs": 1}).fit(X, y).predict(X)
    rough = MultiTabNetRegressor(**{**QUICK, "epochs": 1}, precision="bf16").fit(X, y).predict(X)
    assert rough.std() > 0 and not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.15)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 1, 0], "binary"),
        ([0.5, 1.5, 0.5, None], "binary"),
        (["a", "b", "c", None], "multiclass"),
        ([True, False, True, True], "binary"),
        ([1.0, 2.0, 3.0, None], "multiclass"),
        (list(range(21)), "regression"),
        ([0.1, 0.2, 0.3, 0.4], "regression"),
        ([3.0, 3.0, 3.0, 3.0], "regression"),
    ],
)
def test_kinds_are_inferred(values, kind):
    assert infer_kind(pd.Series(values)) == kind


def test_a_kind_that_is_named_is_taken(mixed_table):
    X, Y = mixed_table
    estimator = MultiTabNet(**QUICK, target_types={"grade": "regression"}).fit(X, Y)
    assert [target.kind for target in estimator.targets_] == ["regression", "binary", "regression"]


def bad(X, Y, place, column, value):
    X, Y = X.copy(), Y.copy()
    table = X if place == "X" else Y
    table[column] = table[column].astype(object)
    table.at[4, column] = value
    return X, Y


@pytest.mark.parametrize(
    ("place", "column", "value", "message"),
    [
        ("X", "a", np.inf, "Input contains infinity, first in row 4"),
        ("Y", "value", -np.inf, "Input contains infinity, first in row 4"),
        ("X", "word", pd.Timestamp("2020-01-01"), "cannot be a category"),
        ("X", "word", np.inf, "Input contains infinity"),
        ("X", "word", ["list"], "cannot be a category"),
        ("X", "a", 1 + 2j, "cannot be a category"),
        ("Y", "answer", {"a": 1}, "cannot be a category"),
    ],
)
def test_bad_cells_name_their_column(mixed_table, place, column, value, message):
    X, Y = mixed_table
    X, Y = bad(X, Y, place, column, value)
    with pytest.raises((TableError, TableTypeError), match=message) as caught:
        MultiTabNet(**QUICK).fit(X, Y)
    assert column in caught.value.where
    assert isinstance(caught.value, MultituneError)


def test_words_where_numbers_were(mixed_table):
    X, Y = mixed_table
    estimator = MultiTabNet(**QUICK).fit(X, Y)
    with pytest.raises(TableError, match="'many' is no number, and the column was one at fit"):
        estimator.predict(bad(X, Y, "X", "b", "many")[0])


def test_bad_labels(mixed_table):
    X, Y = mixed_table
    with pytest.raises(TableError, match="All labels are of one class, 'yes'"):
        MultiTabNet(**QUICK).fit(X, Y.assign(answer="yes"))
    with pytest.raises(TableError, match="No row has a label"):
        MultiTabNet(**QUICK).fit(X, Y.assign(value=np.nan))
    with pytest.raises(TableError, match="300 rows of X and 299 of y"):
        MultiTabNet(**QUICK).fit(X, Y.head(299))
    with pytest.raises(TableError, match="Target 'value' stands twice"):
        MultiTabNet(**QUICK).fit(X, pd.concat([Y, Y[["value"]]], axis=1))
    with pytest.raises(TableError, match="A binary target has 4 classes"):
        MultiTabNet(**QUICK, target_types={"grade": "binary"}).fit(X, Y)
    with pytest.raises(TableError, match=r"no target 'grad'.*Did you mean 'grade'"):
        MultiTabNet(**QUICK, target_types={"grad": "binary"}).fit(X, Y)
    with pytest.raises(TableError, match=r"'regresion' is no kind of target.*'regression'"):
        MultiTabNet(**QUICK, target_types=["regresion", "binary", "binary"]).fit(X, Y)
    with pytest.raises(TableError, match="2 kinds for 3 targets"):
        MultiTabNet(**QUICK, target_types=["regression", "binary"]).fit(X, Y)
    with pytest.raises(TableError, match="Regressor takes no binary target"):
        MultiTabNetRegressor(**QUICK, target_types=["binary"]).fit(X, Y["value"])


def test_labels_at_scoring_are_those_of_fitting(learned):
    estimator, X, Y = learned
    with pytest.raises(TableError, match="The class 'maybe' was not there at fit"):
        estimator.evaluate(X, Y.assign(answer="maybe"))
    with pytest.raises(TableError, match="There are 2 targets; at fit there were 3"):
        estimator.score(X, Y[["value", "answer"]])
    with pytest.raises(TableError, match="The targets are"):
        estimator.score(X, Y[["answer", "value", "grade"]])


def test_bad_tables(mixed_table):
    X, Y = mixed_table
    with pytest.raises(TableError, match="Column 'a' stands 2 times"):
        MultiTabNet(**QUICK).fit(pd.concat([X, X[["a"]]], axis=1), Y)
    with pytest.raises(TableTypeError, match="several types"):
        MultiTabNet(**QUICK).fit(X.rename(columns={"a": 1}), Y)
    with pytest.raises(TableError, match=r"There is no column 'wrd'.*Did you mean 'word'"):
        MultiTabNet(**QUICK, categorical_features=["wrd"]).fit(X, Y)
    with pytest.raises(TableError, match=r"0 sample\(s\)"):
        MultiTabNet(**QUICK).fit(X.head(0), Y.head(0))
    with pytest.raises(TableError, match="n_samples = 1"):
        MultiTabNet(**QUICK).fit(X.head(1), Y.head(1))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(299), "shape \\(299,\\) do not fit 300 rows of 3 targets"),
        (np.ones((300, 2)), "shape \\(300, 2\\) do not fit"),
        (np.full(300, -1.0), "A weight is -1"),
        (np.full(300, np.nan), "A weight is nan"),
        (np.zeros(300), "at least one non-zero"),
    ],
)
def test_bad_weights(mixed_table, weights, message):
    X, Y = mixed_table
    with pytest.raises(TableError, match=message):
        MultiTabNet(**QUICK).fit(X, Y, sample_weight=weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": "TxF"}, "mask is 'TxF'"),
        ({"inter_sample": "rope"}, "inter_sample is 'rope'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"embed_dim": 9}, "embed_dim 9 is no multiple of the 2 heads"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"ff_dropout": 1.0}, "ff_dropout is 1.0"),
        ({"validation_fraction": 1.5}, "validation_fraction is 1.5"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"tower": 64}, "tower is 64"),
        ({"early_stopping": "yes"}, "early_stopping is 'yes'"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
    ],
)
def test_bad_settings(mixed_table, settings, message):
    with pytest.raises(TableError, match=message):
        MultiTabNet(**{**QUICK, **settings}).fit(*mixed_table)


def test_a_training_that_diverges_is_told(regression_table):
    X, y = regression_table
    with pytest.raises(TableError, match="Training diverged"):
        MultiTabNetRegressor(**{**QUICK, "learning_rate": 1e30, "epochs": 5}).fit(X, y)


def test_validation_rows_that_measure_nothing(mixed_table):
    X, Y = mixed_table
    with pytest.raises(TableError, match="By 2 validation rows no target can be measured"):
        MultiTabNet(**QUICK).fit(X, Y, eval_set=(X.head(2), Y.head(2).assign(value=np.nan, answer="no", grade=np.nan)))
    with pytest.raises(TableError, match=r"It is not \(X, y\)"):
        MultiTabNet(**QUICK).fit(X, Y, eval_set=X)


def test_numbers_out_of_range(regression_table):
    X, y = regression_table
    huge = X.copy()
    huge[0, 0], huge[1, 0] = 1e308, -1e308
    with pytest.raises(TableError, match="no standard deviation in double precision"):
        MultiTabNetRegressor(**QUICK).fit(huge, y)
    with pytest.raises(TableError, match="out of range for a column with deviation"):
        MultiTabNetRegressor(**QUICK).fit(X, y).predict(huge)


def test_columns_without_a_number_and_constant_columns_do_no_harm(regression_table):
    X, y = regression_table
    X = np.column_stack([X, np.full(80, np.nan), np.full(80, 3.0)])
    assert np.isfinite(MultiTabNetRegressor(**QUICK).fit(X, y).predict(X)).all()


def test_errors_cross_processes_whole():
    import pickle

    error = TableError("what", "where", "mend")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert copy.copy(error).mend == "mend"


def test_columns_of_every_type(tmp_path):
    X = pd.DataFrame(
        {
            "whole": pd.array([1, 2, None] * 20, dtype="Int64"),
            "truth": pd.array([True, False, None] * 20, dtype="boolean"),
            "word": pd.array(["x", "y", None] * 20, dtype="string"),
            "level": pd.Categorical([1, 2, 3] * 20),
            "mixed": pd.Series([1, 2.5, None] * 20, dtype=object),
            "small": np.arange(60, dtype=np.uint8),
        }
    )
    Y = pd.DataFrame({"whole": X["whole"], "truth": X["truth"], "level": X["level"], "number": np.arange(60) / 7})
    estimator = MultiTabNet(**QUICK).fit(X, Y)
    levels = {feature.name: feature.levels for feature in estimator.features_}
    assert levels["truth"] == (False, True) and levels["level"] == (1, 2, 3)
    assert levels["whole"] is levels["mixed"] is levels["small"] is None
    assert [target.classes for target in estimator.targets_] == [(1, 2), (False, True), (1, 2, 3), ()]
    estimator.save(tmp_path)
    pd.testing.assert_frame_equal(MultiTabNet.load(tmp_path).predict(X), estimator.predict(X))


def test_a_constant_target_and_one_with_a_single_label_are_learned_for_what_they_are(regression_table):
    X, y = regression_table
    labels = np.column_stack([np.full(80, 7.0), np.full(80, np.nan), y[:, 0]])
    labels[3, 1] = -2.0
    predicted = MultiTabNetRegressor(**{**QUICK, "epochs": 20}).fit(X, labels).predict(X)
    np.testing.assert_allclose(predicted[:, 0], 7, atol=0.5)
    np.testing.assert_allclose(predicted[:, 1], -2, atol=1.5)
