"""System 29's small reproduction: its arms through the engine, in miniature."""

from __future__ import annotations

from dataclasses import replace

import pytest

from multitune.systems import SYSTEMS, breadcrumbs, task_vector_testbed
from multitune.systems.breadcrumbs import bed_of
from multitune.systems.reproducing import reproduce


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Every arm on a test bed of four tasks, few steps and few coefficients."""
    system = SYSTEMS[29]
    scale = system.account.scales["small"]
    short = {"targets": 4, "tuning_steps": 20, "alphas": [0.3, 1.0]}
    arms = tuple(replace(arm, settings=arm.settings | short) for arm in scale.arms)
    claims = tuple(claim for claim in scale.claims if claim.key == "a")
    account = replace(system.account, scales={"small": replace(scale, arms=arms, claims=claims)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_vector_testbed, "PRETRAINING_STEPS", 100)
        yield reproduce(replace(system, account=account), "small", tmp_path_factory.mktemp("29"), seeds=1)
    bed_of.cache_clear()


def test_every_arm_tells_what_its_merges_are_worth(result):
    arms = {arm["name"]: arm["metrics"] for arm in result["arms"]}
    assert len(arms) == len(breadcrumbs.ARMS)
    for metrics in arms.values():
        assert metrics["alpha"][0] in (0.3, 1.0)
        assert metrics["n=2"] == metrics["n=2 tuned"]  # the coefficient is tuned on these two
        assert all(0.1 < metrics[f"n={n}"][0] < 1.5 for n in (2, 4))
        assert "n=6" not in metrics
    assert len({metrics["own"][0] for metrics in arms.values()}) == 1
    assert arms["top 15 %"]["n=4"] != arms["arithmetic"]["n=4"]
