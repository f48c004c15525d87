"""scikit-learn's own examination of the MultiTab estimators, and what of it does not apply."""

from __future__ import annotations

import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from multitune.tabular import MultiTabNet, MultiTabNetClassifier, MultiTabNetRegressor

SMALL = {
    "initialisation": "torch",
    "embed_dim": 8,
    "heads": 2,
    "ff_dim": 16,
    "tower": (16,),
    "epochs": 8,
    "batch_size": 32,
    "learning_rate": 3e-2,
    "device": "cpu",
}


def not_applicable(estimator: object) -> dict[str, str]:
    return {
        "check_sample_weight_equivalence_on_dense_data": "batches are drawn at random: a weight of 2 is a row twice as "
        "heavy in its batch, and not a row in two batches"
    }


# Warnings of scikit-learn's own data are no errors here: the checks are about what the estimator does.
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [MultiTabNetRegressor(**SMALL), MultiTabNetClassifier(**SMALL)], expected_failed_checks=not_applicable
)
def test_what_scikit_learn_asks(estimator, check):
    check(estimator)


def test_parameters_are_stored_and_cloned():
    estimator = MultiTabNet(mask="FxT", tower=[8], target_types={"a": "regression"})
    assert clone(estimator).get_params() == estimator.get_params()
    assert set(MultiTabNet().get_params()) == set(MultiTabNetRegressor().get_params())


def test_a_pipeline_in_a_grid_search(regression_table):
    X, y = regression_table
    pipeline = make_pipeline(StandardScaler(), MultiTabNetRegressor(**{**SMALL, "epochs": 3}, random_state=0))
    search = GridSearchCV(pipeline, {"multitabnetregressor__mask": ["TxT", "none"]}, cv=2).fit(X, y)
    assert search.best_params_["multitabnetregressor__mask"] in ("TxT", "none")
    assert search.predict(X).shape == (len(X), 2)


def test_an_unknown_name_of_the_wing():
    import multitune.tabular

    with pytest.raises(AttributeError, match="MultiTabNett"):
        multitune.tabular.MultiTabNett  # noqa: B018
