"""System 3's small reproduction in miniature."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from multitune.systems import SYSTEMS, rmtgb
from multitune.systems.reproducing import reproduce

SHORT = {"tasks": 3, "outliers": 1, "features": 2, "rows": 20, "test_rows": 10}


def shortened(arm):
    settings = {**arm.settings, "table": SHORT}
    if "rmtgb" in settings:
        few = [min(n, 3) for n in settings["rmtgb"]["n_estimators"]]
        return replace(arm, settings={**settings, "rmtgb": {**settings["rmtgb"], "n_estimators": few}})
    return replace(arm, settings={**settings, "lightgbm": {**settings["lightgbm"], "n_estimators": 3}})


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    system = SYSTEMS[3]
    scale = system.account.scales["small"]
    account = replace(system.account, scales={"small": replace(scale, arms=tuple(map(shortened, scale.arms)))})
    return reproduce(replace(system, account=account), "small", tmp_path_factory.mktemp("3"), seeds=2)


def test_the_whole_reproduction_in_miniature(result):
    arms = {arm["name"]: arm["metrics"] for arm in result["arms"]}
    assert list(arms) == [arm.name for arm in rmtgb.ARMS]
    for name, metrics in arms.items():
        assert all(0 < value < 5 for value in metrics["rmse"])
        for all_rows, inliers, outliers in zip(metrics["rmse"], metrics["inliers"], metrics["outliers"], strict=True):
            assert all_rows**2 == pytest.approx((2 * inliers**2 + outliers**2) / 3, rel=1e-4)
        scored = [value is not None for value in metrics["auc"]]
        assert scored == [name in ("R-MTGB", "frozen", "late")] * 2
    assert len(result["claims"]) == 4


def test_what_a_claim_measures():
    peers = {"MTGB": 0.5, "STL": 1.0, "LightGBM per task": 0.8, "LightGBM pooled": 0.625}
    arms = {"R-MTGB": {"rmse": 0.5, "auc": 1.0}, **{name: {"rmse": value} for name, value in peers.items()}}
    effects = [claim.effect(arms) for claim in rmtgb.CLAIMS]
    np.testing.assert_allclose(effects, [0.0, 0.5, 0.2, 1.0])
