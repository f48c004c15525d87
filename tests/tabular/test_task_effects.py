"""What a fitted R-MTGB does with a feature, task by task, and the drawing of theta."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from multitune.errors import MultituneError
from multitune.tabular import RMTGBClassifier, RMTGBRegressor, feature_importance, partial_dependence, plot_theta


@pytest.fixture(scope="module")
def shops():
    random = np.random.default_rng(0)
    X = pd.DataFrame({"price": random.uniform(-1, 1, 400), "noise": random.normal(size=400)})
    X["day"] = random.choice(["mon", "sat"], 400)
    shop = random.choice(["a", "b", "<c>"], 400)
    y = np.where(shop == "<c>", -2, 2) * X.price + (X.day == "sat")
    return X, y, shop, RMTGBRegressor(random_state=0).fit(X, y, task=shop)


def test_partial_dependence_of_a_number(shops):
    X, _, shop, booster = shops
    table = partial_dependence(booster, X, "price", shop, grid=9)
    assert table.columns.tolist() == ["<c>", "a", "b", "shared"] and table.index.name == "price" and len(table) == 9
    rise = table.iloc[-1] - table.iloc[0]
    width = table.index[-1] - table.index[0]
    assert rise["a"] / width == pytest.approx(2, abs=0.3) and rise["<c>"] / width == pytest.approx(-2, abs=0.4)
    assert rise["shared"] > 0
    at = X.assign(price=table.index[4])
    by_hand = booster.predict(at, task=np.full(400, "b")).mean()
    assert table["b"].iloc[4] == pytest.approx(by_hand, abs=1e-9)


def test_partial_dependence_of_a_category_and_of_a_class(shops):
    X, y, shop, booster = shops
    table = partial_dependence(booster, X, "day", shop)
    assert table.index.tolist() == ["mon", "sat"]
    assert (table.loc["sat"] - table.loc["mon"])["a"] == pytest.approx(1, abs=0.1)
    label = np.where(y > 0.5, "much", "little")
    classifier = RMTGBClassifier((0, 20, 10), random_state=0).fit(X, label, task=shop)
    much = partial_dependence(classifier, X, 0, shop, grid=5)
    assert much["a"].iloc[-1] > much["a"].iloc[0] + 0.3 and much.stack().between(0, 1).all()
    little = partial_dependence(classifier, X, 0, shop, grid=5, output=0)
    np.testing.assert_allclose(much + little, 1)


def test_importance(shops):
    X, y, shop, booster = shops
    table = feature_importance(booster, X, y, shop)
    assert table.columns.tolist() == ["<c>", "a", "b", "all", "shared"]
    assert table.index.tolist() == ["price", "day", "noise"]
    assert abs(table.loc["noise", "all"]) < 0.02
    # Half the mean squared difference of two independent values of 2 x, x uniform in [-1, 1], is 4/3.
    assert table.loc["price", "a"] == pytest.approx(4 / 3, rel=0.15)
    alone = RMTGBRegressor((0, 0, 30)).fit(X, y, task=shop)
    assert (feature_importance(alone, X, y, shop)["shared"] == 0).all()


def test_an_unknown_feature(shops):
    X, _, shop, booster = shops
    with pytest.raises(MultituneError, match=r"no feature 'prise'\. Did you mean 'price'"):
        partial_dependence(booster, X, "prise", shop)
    with pytest.raises(MultituneError, match="missing in every row"):
        partial_dependence(booster, X.assign(price=np.nan), "price", shop)


def test_the_drawing_of_theta(shops, tmp_path):
    *_, booster = shops
    drawing = plot_theta(booster, tmp_path / "theta.svg")
    assert (tmp_path / "theta.svg").read_text() == drawing
    root = ElementTree.fromstring(drawing)
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b", "<c>"} <= set(names)
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert [float(circle.get("cx")) for circle in circles] == sorted(float(circle.get("cx")) for circle in circles)
    assert len(circles) == 3
