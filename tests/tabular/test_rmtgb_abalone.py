"""R-MTGB on a real table: the published numbers, and the two engines beside one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multitune.tabular import RMTGBRegressor

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "tables" / "abalone"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the tables beside the repository are absent")


def rmse(blocks: tuple[int, int, int], engine: str) -> float:
    train, test = pd.read_csv(FOLDER / "train.csv"), pd.read_csv(FOLDER / "test.csv")
    booster = RMTGBRegressor(blocks, 0.1, 1, engine=engine, task_column="task", random_state=0)
    booster.fit(train.drop(columns="y"), train["y"])
    return float(np.sqrt(np.mean((booster.predict(test.drop(columns="y")) - test["y"]) ** 2)))


@pytest.mark.parametrize(("blocks", "published"), [((50, 50, 100), 2.302), ((50, 0, 100), 2.323), ((100, 0, 0), 2.444)])
def test_the_published_numbers(blocks, published):
    exact, hist = rmse(blocks, "exact"), rmse(blocks, "hist")
    assert exact == pytest.approx(published, abs=0.002)  # the published theta0 is not known
    assert hist == pytest.approx(exact, rel=0.005)
