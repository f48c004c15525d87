"""Drawn tables of many tasks: the truth behind them is what their scenario says."""

from __future__ import annotations

import numpy as np
import pytest

from multitune.errors import MultituneError
from multitune.tabular import make_multitask_tables

GRID = np.random.default_rng(0).uniform(-1, 1, (400, 5))


def alike(tables, a, b):
    return float(np.corrcoef(tables.truth(GRID, a), tables.truth(GRID, b))[0, 1])


def test_the_scenarios():
    pooled = make_multitask_tables("pooled", tasks=3, rows=10, test_rows=5)
    np.testing.assert_allclose(pooled.truth(GRID, 0), pooled.truth(GRID, 2), atol=1e-12)
    assert not pooled.is_outlier.any()
    related = make_multitask_tables("related", tasks=3, rows=10, test_rows=5)
    assert alike(related, 0, 2) > 0.9 and np.any(related.truth(GRID, 0) != related.truth(GRID, 2))
    outliers = make_multitask_tables("outliers", tasks=5, outliers=2, rows=10, test_rows=5)
    assert outliers.is_outlier.tolist() == [False] * 3 + [True] * 2
    assert alike(outliers, 0, 1) > 0.9 and alike(outliers, 3, 4) > 0.9 and abs(alike(outliers, 0, 4)) < 0.6
    separate = make_multitask_tables("separate", tasks=3, rows=10, test_rows=5)
    assert max(abs(alike(separate, 0, 1)), abs(alike(separate, 1, 2))) < 0.6


def test_functions_have_unit_variance_over_draws():
    at = np.zeros((1, 5))
    values = [
        make_multitask_tables("pooled", tasks=1, outliers=0, rows=1, test_rows=1, seed=s).truth(at, 0)[0]
        for s in range(200)
    ]
    assert np.var(values) == pytest.approx(1, abs=0.3)


def test_rows_and_splits():
    tables = make_multitask_tables(tasks=3, outliers=1, rows=[4, 5, 6], test_rows=7, noise=0.1)
    assert np.bincount(tables.train.task).tolist() == [4, 5, 6] and np.bincount(tables.test.task).tolist() == [7] * 3
    again = make_multitask_tables(tasks=3, outliers=1, rows=[4, 5, 6], test_rows=7, noise=0.1)
    np.testing.assert_array_equal(tables.train.y, again.train.y)
    fresh = tables.sample(4, "fresh")
    assert not np.isin(fresh.X[:, 0], tables.train.X[:, 0]).any()
    np.testing.assert_allclose(fresh.signal[fresh.task == 1], tables.truth(fresh.X[fresh.task == 1], 1))
    assert 0 < np.std(fresh.y - fresh.signal) < 0.3


def test_classes_by_the_sign():
    tables = make_multitask_tables(kind="classification", tasks=4, rows=60, test_rows=60, seed=1)
    for rows in (tables.train, tables.test):
        np.testing.assert_array_equal(rows.y, rows.signal > 0)
        assert all(0.1 <= rows.y[rows.task == r].mean() <= 0.9 for r in range(4))


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ("no scenario 'outlier'. Did you mean 'outliers'", {"scenario": "outlier"}),
        ("no kind 'regress'", {"kind": "regress"}),
        ("2 tasks with 2 outliers", {"tasks": 2}),
        ("share of 1.5", {"share": 1.5}),
        ("are not numbers of rows of 10 tasks", {"rows": [1, 2]}),
        ("less than a tenth of one class", {"kind": "classification", "rows": 1}),
    ],
)
def test_what_cannot_be_drawn(told, settings):
    with pytest.raises(MultituneError, match=told):
        make_multitask_tables(**{"test_rows": 2, **settings})
