"""Search by covariance matrix adaptation: never worse than its start, repeatable, within bounds."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from multitune.errors import MultituneError
from multitune.weights.learned.composition import composed
from multitune.weights.learned.search import search, search_coefficients


def bowl(point):
    """Largest, 0, at 0.3 in every coordinate."""
    return -sum((one - 0.3) ** 2 for one in point)


@pytest.mark.parametrize(("coordinates", "evaluations"), [(1, 80), (4, 400)])
def test_the_top_of_a_bowl_is_found(coordinates, evaluations):
    found = search(bowl, [0.0] * coordinates, evaluations=evaluations)
    assert found.point == pytest.approx([0.3] * coordinates, abs=0.03)
    assert found.score == max(found.tried) == bowl(found.point)
    assert found.tried[0] == bowl([0.0] * coordinates)


def test_a_seed_is_a_search_and_no_global_generator_is_touched():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    runs = [search(bowl, [0.1] * 3, evaluations=50, seed=seed, bounds=(0.0, 0.25)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] and runs[0].tried != runs[2].tried
    assert all(0 <= one <= 0.25 for run in runs for one in run.point)
    assert (np.random.get_state()[1] == before).all()


def test_nothing_better_leaves_the_start_and_minus_infinity_is_avoided():
    assert search(lambda point: -abs(point[0]), [0.0], evaluations=30).point == [0.0]
    edge = search(lambda p: p[0] if p[0] < 0.5 else -math.inf, [0.0, 0.0], evaluations=200)
    assert 0.4 < edge.point[0] < 0.5
    assert search(bowl, [0.2, 0.2], evaluations=1).tried == [bowl([0.2, 0.2])]


@pytest.mark.parametrize(("by", "count"), [("all", 2), ("tensor", 10)])
def test_coefficients_are_searched_among_those_that_are_chosen(bench, by, count):
    chosen_NC = None
    if by == "tensor":
        chosen_NC = torch.tensor([[True] * 10, [False] * 10])
    composition = composed(bench.model, bench.vectors, by, chosen_NC=chosen_NC)
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    learned = search_coefficients(
        bench.model, composition, lambda forward: -bench.loss(forward).item(), evaluations=60, bounds=(-1.0, 1.0)
    )
    assert composition.parameters == count
    assert all(tensor.equal(before[name]) for name, tensor in bench.model.state_dict().items())
    learned.fold_into(bench.model)
    assert -bench.loss(bench.model).item() == pytest.approx(max(learned.scores), abs=1e-9)
    assert max(learned.scores) > learned.scores[0]
    if chosen_NC is not None:
        assert learned.lam_NC.ne(0).equal(chosen_NC)


@pytest.mark.parametrize(
    "wrong",
    [{"start": []}, {"evaluations": 0}, {"start": [2.0], "bounds": (0.0, 1.0)}],
    ids=["none", "zero", "outside"],
)
def test_what_is_no_search_is_refused(wrong):
    with pytest.raises(MultituneError, match="are no search"):
        search(bowl, **{"start": [0.0], "evaluations": 5, **wrong})


def test_a_score_that_is_no_number_and_a_missing_package_are_told(monkeypatch):
    with pytest.raises(MultituneError, match="NaN"):
        search(lambda point: math.nan, [0.0], evaluations=5)
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MultituneError, match="needs pycma"):
        search(bowl, [0.0], evaluations=5)
