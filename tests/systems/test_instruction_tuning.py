"""Systems 27 and 30 on the composed operations: splits, restored starts, and arms that tell what is claimed."""

from __future__ import annotations

import math

import pytest
import torch

from multitune.systems import opt_iml, quick_learners
from multitune.systems.composed_operations import PAIRS, exact_match

TINY = {"steps": 6, "batch": 4, "test_rows": 8, "largest": 400, "smallest": 10}


def test_levels_share_no_pair():
    trained, held_out, withheld = opt_iml.split(3, 8, withheld=False)
    assert (len(trained), len(held_out), withheld) == (28, 8, [])
    assert sorted(pair.name for pair in (*trained, *held_out)) == sorted(pair.name for pair in PAIRS)
    trained, held_out, withheld = opt_iml.split(3, 8, withheld=True)
    assert [len(some) for some in (trained, held_out, withheld)] == [17, 8, 11]
    words = [{word for pair in some for word in (pair.first, pair.second)} for some in (trained, withheld)]
    (unseen,) = words[1] - words[0]
    assert all(unseen in (pair.first, pair.second) for pair in withheld)
    assert not set(trained) & set(held_out)


def test_sizes_fall_from_the_largest_to_the_smallest():
    sizes = opt_iml.zipf_sizes(28, 20_000, 60)
    assert (sizes[0], sizes[-1], len(sizes)) == (20_000, 60, 28)
    assert sizes == sorted(sizes, reverse=True)


def test_the_arms_of_opt_iml_tell_what_its_claims_ask(tmp_path):
    arms = {arm.name: opt_iml.run_small({**arm.settings, **TINY}, 0, tmp_path) for arm in opt_iml.ARMS}
    assert all(math.isfinite(claim.effect(arms)) for claim in opt_iml.CLAIMS)
    assert "withheld" in arms["withheld"]
    assert "small" not in arms["16 tasks"]


LEARNING = {
    "copying_steps": 3, "stage_1_steps": 3, "stage_1_rows": 20, "held_out": 1, "stage_2_steps": 3,
    "validation_rows": 8, "test_rows": 8,
}  # fmt: skip


def test_the_arms_of_quick_learners_tell_what_its_claims_ask(tmp_path):
    arms = {}
    for arm in quick_learners.ARMS:
        arms[arm.name] = quick_learners.run_small({**arm.settings, **LEARNING}, 0, tmp_path)
        assert arms[arm.name] == pytest.approx(
            quick_learners.run_small({**arm.settings, **LEARNING}, 0, tmp_path), nan_ok=True
        )
    found = {claim.key: claim.effect(arms) for claim in quick_learners.CLAIMS}
    assert math.isnan(found["3"]), "so little reaches nothing: inconclusive, not a number"
    assert all(math.isfinite(value) for key, value in found.items() if key != "3")


def test_no_budget_changes_the_starting_weights():
    settings = {**quick_learners.SETTINGS, **LEARNING}
    start = quick_learners._start("base", 0, quick_learners._frozen(settings))
    before = [p.detach().clone() for p in start.parameters()]
    _, held_out = quick_learners.split(0, 6)
    assert quick_learners._learned(start, held_out[0], 0, settings, 0, told=True) is start
    learned = quick_learners._learned(start, held_out[0], 8, settings, 0, told=True)
    assert all(map(torch.equal, before, start.parameters()))
    assert not all(map(torch.equal, before, learned.parameters()))
    assert 0 <= exact_match(learned, held_out[0], torch.zeros(2, 5, dtype=torch.long)) <= 1


def test_held_out_pairs_are_no_copies_and_not_trained_on():
    for seed in range(5):
        trained, held_out = quick_learners.split(seed, 6)
        assert (len(trained), len(held_out)) == (28, 6)
        assert not any(pair.changes_nothing for pair in held_out)
        assert not set(trained) & set(held_out)
