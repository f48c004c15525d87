"""Small tables for the tests of this wing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="session")
def regression_table() -> tuple[np.ndarray, np.ndarray]:
    """Two regression targets, each the double of a feature, and noise features."""
    X = np.random.default_rng(0).normal(size=(80, 4))
    return X, 2 * X[:, :2]


@pytest.fixture
def mixed_table() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three targets of three kinds with missing labels, over numbers and words, some of them missing."""
    random = np.random.default_rng(0)
    X = pd.DataFrame(random.normal(size=(300, 3)), columns=["a", "b", "c"])
    X["word"] = random.choice(["x", "y", None], 300)
    Y = pd.DataFrame(
        {
            "value": 2 * X.a + (X.word == "x") + 5,
            "answer": np.where(X.b > 0, "yes", "no"),
            "grade": np.digitize(X.c, [-1, 0, 1]).astype(float),
        }
    )
    X.loc[::11, "a"] = np.nan
    Y.loc[::7, "value"] = np.nan
    Y.loc[::5, "answer"] = None
    Y.loc[::3, "grade"] = np.nan
    return X, Y
