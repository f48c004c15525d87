"""Verdicts on worked numbers: each can come out, by interval and by count."""

from __future__ import annotations

import math

import pytest

from multitune.systems.claims import Claim, Count, compared, counted, judge


def claim(threshold: float = 0.0, count: Count | None = None) -> Claim:
    return Claim("1", "New beats old.", "new - old", lambda arms: arms["new"]["x"] - arms["old"]["x"], threshold, count)


def seeds(*differences: float) -> list[dict[str, dict[str, float]]]:
    return [{"old": {"x": 1.0}, "new": {"x": 1.0 + difference}} for difference in differences]


def test_an_interval_wholly_above_the_threshold_reproduces():
    found = judge(claim(), seeds(1.0, 2.0, 3.0, 2.0, 2.0))
    # mean 2, standard deviation sqrt(1/2), Student's t with 4 degrees of freedom 2.776445
    reach = 2.776445 * math.sqrt(0.5 / 5)
    assert found.mean == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach), abs=1e-5)
    assert (found.verdict, found.met) == ("reproduced", 5)
    assert found.sign_test_p == pytest.approx(2 / 2**5)


def test_the_same_effects_do_not_reach_a_higher_threshold():
    found = judge(claim(threshold=4.0), seeds(1.0, 2.0, 3.0, 2.0, 2.0))
    assert (found.verdict, found.met) == ("not reproduced", 0)
    reach = 2.776445 * math.sqrt(0.5 / 5)
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach), abs=1e-5)


def test_an_interval_that_holds_the_threshold_leaves_the_claim_open():
    assert judge(claim(), seeds(1.0, -1.0, 3.0, -2.0, 2.0)).verdict == "inconclusive"
    assert judge(claim(threshold=2.1), seeds(1.0, 2.0, 3.0, 2.0, 2.0)).verdict == "inconclusive"


def test_an_interval_that_begins_at_the_threshold_reproduces():
    assert judge(claim(threshold=0.5), seeds(0.5, 0.5, 0.5)).verdict == "reproduced"
    assert (compared(0.0, 1.0), compared(-1.0, 0.0), compared(-2.0, -1.0)) == (
        "reproduced",
        "inconclusive",
        "not reproduced",
    )


def test_one_seed_decides_nothing_by_interval():
    found = judge(claim(), seeds(100.0))
    assert found.verdict == "inconclusive"
    assert math.isinf(found.low) and math.isinf(found.high)


def test_an_effect_that_is_not_defined_leaves_the_claim_open_even_where_seeds_are_counted():
    for count in (None, Count(1, 2)):
        found = judge(claim(count=count), seeds(1.0, math.nan, 1.0))
        assert found.verdict == "inconclusive"
        assert math.isnan(found.mean)
        assert found.met == 2


@pytest.mark.parametrize(
    ("met", "of", "verdict"),
    [
        (5, 5, "reproduced"),
        (4, 5, "reproduced"),
        (3, 5, "not reproduced"),
        (0, 5, "not reproduced"),
        (4, 4, "reproduced"),  # the fifth cannot turn it
        (3, 4, "inconclusive"),
        (2, 4, "not reproduced"),
        (1, 1, "inconclusive"),
        (0, 2, "not reproduced"),
        (8, 10, "reproduced"),  # the same share of more seeds
        (7, 10, "not reproduced"),
        (6, 7, "reproduced"),
        (5, 7, "not reproduced"),
    ],
)
def test_four_of_five_seeds(met, of, verdict):
    assert counted(Count(4, 5), met, of) == verdict


def test_a_claim_that_counts_seeds_is_decided_by_its_count():
    wide = seeds(30.0, 30.0, 0.3, 0.3, -40.0)  # the interval holds the threshold, four seeds reach it
    found = judge(claim(threshold=0.25, count=Count(4, 5)), wide)
    assert found.low < 0.25 < found.high
    assert (found.verdict, found.met) == ("reproduced", 4)
    assert judge(claim(threshold=0.25), wide).verdict == "inconclusive"


def test_rules_in_words():
    assert claim(0.25, Count(4, 5)).rule == "at least 0.25 in 4 of 5 seeds"
    assert claim(0.95).rule == "at least 0.95 in the whole interval"
