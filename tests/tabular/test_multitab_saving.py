"""Fitted networks on disk: nothing is lost, nothing is pickled, and what cannot be read is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from multitune.tabular import MultiTabNet, MultiTabNetClassifier, MultiTabNetRegressor
from multitune.tabular.multitab_columns import TableError

QUICK = {"embed_dim": 8, "heads": 2, "ff_dim": 16, "epochs": 2, "initialisation": "torch", "device": "cpu"}


@pytest.fixture
def saved(mixed_table, tmp_path):
    X, Y = mixed_table
    estimator = MultiTabNet(**QUICK, random_state=0, inter_sample="batch", context_rows=10).fit(X, Y)
    estimator.save(tmp_path / "model")
    return estimator, X, tmp_path / "model"


def test_nothing_is_lost(saved):
    estimator, X, folder = saved
    loaded = MultiTabNet.load(folder)
    pd.testing.assert_frame_equal(loaded.predict(X), estimator.predict(X))
    pd.testing.assert_frame_equal(loaded.predict(X[X.columns[::-1]]), estimator.predict(X))
    assert loaded.classes_["answer"].tolist() == ["no", "yes"]
    assert list(loaded.feature_names_in_) == list(X.columns)
    assert loaded.get_params()["context_rows"] == 10 and loaded.n_iter_ == 2
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]


def test_it_can_be_saved_over_and_saved_again(saved):
    estimator, X, folder = saved
    MultiTabNet.load(folder).save(folder)
    pd.testing.assert_frame_equal(MultiTabNet.load(folder).predict(X), estimator.predict(X))


def test_shapes_and_classes_survive(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 3))
    y = np.where(X[:, 0] > 0, 7, 3)
    classifier = MultiTabNetClassifier(**QUICK, random_state=np.random.RandomState(0)).fit(X, y)
    classifier.save(tmp_path)
    loaded = MultiTabNetClassifier.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(X), classifier.predict_proba(X))
    assert loaded.classes_.tolist() == [3, 7] and loaded.random_state is None


def test_what_cannot_be_read_is_refused(saved, tmp_path):
    _, _, folder = saved
    with pytest.raises(TableError, match="no saved estimator"):
        MultiTabNet.load(tmp_path / "nowhere")
    with pytest.raises(TableError, match="It holds a MultiTabNet and no MultiTabNetRegressor"):
        MultiTabNetRegressor.load(folder)
    file = folder / "model.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "format": 99}))
    with pytest.raises(TableError, match="saved by a newer version, in format 99"):
        MultiTabNet.load(folder)
    file.write_text(json.dumps({**facts, "weights_sha256": "0"}))
    with pytest.raises(TableError, match=r"not those that model.json was written with"):
        MultiTabNet.load(folder)
    file.write_text("{")
    with pytest.raises(TableError, match="damaged"):
        MultiTabNet.load(folder)
    file.write_text("[]")
    with pytest.raises(TableError, match="names no format"):
        MultiTabNet.load(folder)


def test_an_unfitted_estimator_is_not_saved(tmp_path):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        MultiTabNet().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
