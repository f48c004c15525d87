"""Paired differences: aligned by id, certain where every example agrees, wide where it is chance."""

from __future__ import annotations

import numpy as np
import pytest

from multitune.errors import MultituneError
from multitune.scoring.predictions import Prediction
from multitune.scoring.significance import paired_difference, paired_difference_over_seeds


def predictions(scores: dict[str, float] | list[tuple[str, float]]) -> list[Prediction]:
    pairs = scores.items() if isinstance(scores, dict) else scores
    return [Prediction(name, name, "", "x", "y", None, float(score)) for name, score in pairs]


def test_lists_are_aligned_by_id_and_what_is_left_out_is_counted():
    before = predictions({"a": 0, "b": 0, "c": 1})
    after = predictions({"d": 1, "c": 1, "b": 1, "e": 0})
    found = paired_difference(before, after)
    assert (found.difference, found.aligned, found.before_only, found.after_only) == (0.5, 2, 1, 2)


def test_several_templates_of_an_example_are_aligned_in_their_order():
    found = paired_difference(predictions([("a", 0), ("a", 1)]), predictions([("a", 1), ("a", 1), ("a", 0)]))
    assert (found.difference, found.aligned, found.after_only) == (0.5, 2, 1)


def test_the_same_gain_everywhere_is_certain():
    names = [f"x{i}" for i in range(20)]
    values = np.random.default_rng(0).random(20)
    before = predictions(dict(zip(names, values, strict=True)))
    after = predictions(dict(zip(names, values + 0.25, strict=True)))
    found = paired_difference(before, after)
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_pairing_tells_apart_what_the_means_alone_do_not():
    generator = np.random.default_rng(0)
    values = generator.normal(0, 10, 200)
    after_values = values + 0.5 + generator.normal(0, 1, 200)
    names = [f"x{i}" for i in range(200)]
    found = paired_difference(
        predictions(dict(zip(names, values, strict=True))), predictions(dict(zip(names, after_values, strict=True)))
    )
    assert 0 < found.low < found.difference < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.2)


def test_no_difference_and_the_opposite_difference():
    before = predictions({"a": 0, "b": 1, "c": 0, "d": 1})
    after = predictions({"a": 1, "b": 1, "c": 0, "d": 0})
    same = paired_difference(before, before)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    there, back = paired_difference(before, after, seed=5), paired_difference(after, before, seed=5)
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-there.difference, -there.high, -there.low), abs=0.02
    )


def test_seeds_that_disagree_widen_the_interval():
    names = [f"x{i}" for i in range(100)]
    zero = predictions(dict.fromkeys(names, 0.0))
    gains = [predictions(dict.fromkeys(names, gain)) for gain in (0.0, 0.2, 0.4)]
    found = paired_difference_over_seeds([(zero, gain) for gain in gains])
    assert found.seeds == 3 and found.aligned == 100
    assert found.difference == pytest.approx(0.2)
    assert found.low < 0.1 and found.high > 0.3
    one = paired_difference_over_seeds([(zero, gains[1])])
    assert (one.low, one.high) == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("pairs", [[], [(predictions({"a": 1}), predictions({"b": 1}))], [([], [])]])
def test_lists_without_a_common_example_are_refused(pairs):
    with pytest.raises(MultituneError, match="no example in common"):
        paired_difference_over_seeds(pairs)
