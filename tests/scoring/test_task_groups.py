"""Groups that are there are found; where there are none, none are advised."""

from __future__ import annotations

import builtins
from itertools import combinations

import numpy as np
import pytest

from multitune.errors import MultituneError
from multitune.scoring.task_groups import clustering, group


def affinity(tasks, pairs, other=0.0):
    values = {one: dict.fromkeys(tasks, other) | {one: 1.0} for one in tasks}
    for (one, two), value in pairs.items():
        values[one][two] = values[two][one] = value
    return values


def test_two_plain_groups_are_found_whatever_the_order():
    inside = dict.fromkeys([*combinations("acf", 2), *combinations("bde", 2)], 0.8)
    found = group("abcdef", affinity("abcdef", inside, 0.05))
    assert found.advice == "groups" and found.groups == (("a", "c", "f"), ("b", "d", "e"))
    assert max(found.silhouettes, key=found.silhouettes.get) == 2
    assert found.silhouettes[2] == pytest.approx((0.95 - 0.2) / 0.95)


def test_one_pair_among_many_strangers_is_a_group_and_the_rest_stays_alone():
    tasks = "abcdefgh"
    found = group(tasks, affinity(tasks, {("c", "g"): 0.9}))
    assert found.advice == "groups" and ("c", "g") in found.groups and len(found.groups) == 7


def test_no_structure_advises_against_groups():
    generator = np.random.default_rng(0)
    tasks = "abcdefgh"
    noise = {pair: float(generator.uniform(-0.2, 0.2)) for pair in combinations(tasks, 2)}
    found = group(tasks, affinity(tasks, noise))
    assert found.advice == "alone" and found.groups == tuple((task,) for task in tasks)
    assert "too little" in found.reason


def test_all_that_help_each_other_are_trained_together():
    near = dict.fromkeys(combinations("abc", 2), 0.9) | {("a", "c"): 0.6}
    assert group("abc", affinity("abc", near)).advice == "together"
    even = group("abcd", affinity("abcd", {}, 0.4))
    assert even.advice == "together" and even.groups == (("a", "b", "c", "d"),)


@pytest.mark.parametrize(("value", "advice"), [(0.9, "together"), (0.3, "together"), (0.1, "alone"), (-1, "alone")])
def test_two_tasks_are_together_or_alone(value, advice):
    assert group("ab", affinity("ab", {("a", "b"): value})).advice == advice


def test_what_is_not_known_does_not_group():
    found = group("abc", affinity("abc", {}, None))
    assert found.advice == "alone" and "nothing is known" in found.reason
    partly = group("abc", affinity("abc", {("a", "b"): 0.9}, None))
    assert partly.advice == "groups" and partly.groups == (("a", "b"), ("c",))


def test_a_missing_library_is_told(monkeypatch):
    load = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError("no", name="sklearn")
        return load(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MultituneError, match="needs sklearn") as told:
        clustering()
    assert "multitune[tables]" in told.value.mend
