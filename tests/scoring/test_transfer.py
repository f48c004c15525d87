"""Gains, shares and affinities to the digit on scores made by hand."""

from __future__ import annotations

import pytest

from multitune.scoring.predictions import Prediction
from multitune.scoring.transfer import Answered, Gain, gain, is_gain, transfer

METRICS = {"a": "accuracy", "b": "accuracy", "c": "mse", "far": "accuracy"}
BASE = {"a": 0.2, "b": 0.5, "c": 4.0, "far": 0.1}
TRAINED = {
    "a": {"a": 0.6, "b": 0.6, "c": 3.0, "far": 0.3},
    "b": {"a": 0.1, "b": 0.9, "c": 4.0, "far": 0.1},
    "c": {"a": 0.2, "b": 0.5, "c": 2.0, "far": 0.0},
}


def measured(base=BASE, trained=TRAINED):
    return transfer(
        ["a", "b", "c"],
        ["a", "b", "c", "far"],
        METRICS,
        {task: Answered(value) for task, value in base.items()},
        {row: {task: Answered(value) for task, value in cells.items()} for row, cells in trained.items()},
    )


def answers(scores, texts=None, reference="x"):
    texts = texts or ["y"] * len(scores)
    return [
        Prediction(str(i), "", "", text, reference, None, one)
        for i, (one, text) in enumerate(zip(scores, texts, strict=True))
    ]


def test_gains_shares_and_affinities_to_the_digit():
    found = measured()
    assert found.gains["a"]["b"].value == pytest.approx(0.1)
    assert found.gains["a"]["c"].value == pytest.approx(1.0), "an error that falls is a gain"
    assert found.shares["a"] == pytest.approx({"a": 1.0, "b": 0.25, "c": 0.5, "far": None})
    assert found.shares["b"]["a"] == pytest.approx(-0.25)
    assert found.affinity["a"]["b"] == found.affinity["b"]["a"] == pytest.approx(0.0)
    assert found.affinity["a"]["c"] == pytest.approx(0.25) and found.affinity["c"]["c"] == 1.0
    assert found.gained_nothing == ()


def test_a_task_that_gains_nothing_from_itself_is_undefined_never_infinite():
    found = measured(trained=TRAINED | {"b": {"a": 0.3, "b": 0.5, "c": 4.0, "far": 0.1}})
    assert found.gained_nothing == ("b",)
    assert all(found.shares[row]["b"] is None for row in "abc"), "its own too"
    assert found.affinity["a"]["b"] == pytest.approx(0.25), "the direction that is defined"
    assert found.affinity["b"]["c"] == pytest.approx(0.0)
    worse = measured(trained={row: dict.fromkeys(METRICS, 0.0) | {"c": 9.0} for row in "abc"})
    assert worse.gained_nothing == ("a", "b", "c") and worse.affinity["a"]["b"] is None


def test_shares_count_within_one_for_affinity():
    base, trained = BASE | {"a": 0.0}, TRAINED | {"b": TRAINED["b"] | {"a": 4.0}}
    assert measured(base, trained).affinity["a"]["b"] == pytest.approx((1.0 + 0.25) / 2)


def test_a_gain_whose_interval_holds_zero_is_none():
    assert is_gain(Gain(0.1)) and not is_gain(Gain(0.0)) and not is_gain(Gain(0.1, -0.01, 0.2))
    assert is_gain(Gain(0.1, 0.01, 0.2)) and Gain(0.1, 0.01, 0.2).verdict == "better"
    assert Gain(-0.1, -0.2, -0.01).verdict == "worse" and Gain(0.1).verdict == "unclear"


def test_intervals_are_paired_over_rows():
    before, after = answers([0.0, 0.5, 1.0, 0.25]), answers([0.25, 0.75, 1.25, 0.5])
    found = gain(Answered(0.4375, before), Answered(0.6875, after), "mse")
    assert (found.value, found.low, found.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert gain(Answered(0.4375, before), Answered(0.5), "accuracy").low is None, "no answers, no interval"
    assert gain(Answered(0.9, before), Answered(0.6875, after), "accuracy").low is None, "answers of something else"


def test_a_metric_that_is_no_mean_is_computed_anew_on_the_same_rows_of_both():
    right = ["cat", "dog"] * 20
    references = [Prediction(str(i), "", "", "cat", text, None, float("nan")) for i, text in enumerate(right)]
    after = [Prediction(one.id, "", "", one.reference, one.reference, None, float("nan")) for one in references]
    found = gain(Answered(1 / 3, references), Answered(1.0, after), "macro_f1")
    assert found.value == pytest.approx(2 / 3)
    assert found.low is not None and 0.55 < found.low < found.value < found.high < 0.78
