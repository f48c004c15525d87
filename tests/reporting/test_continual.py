"""Chains of train steps as rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from multitune.reporting.continual import sequences
from multitune.reporting.run_folder import Run


def a_run(artifacts: dict[str, dict[str, Any]], scores: dict[tuple[str, str], float], metric: str = "accuracy") -> Run:
    """A run with test scores by (node, task)."""
    rows = [
        {"step": node, "task": task, "split": "test", "metric": metric, "value": value, "n": 10}
        for (node, task), value in scores.items()
    ]
    return Run(Path("run"), {}, "", {}, rows, {}, artifacts)


CHAIN = {
    "first": {"model": "base", "tasks": ["a"]},
    "second": {"model": "first", "tasks": ["b", "a"]},  # a is replayed
}
SCORES = {("first", "a"): 0.9, ("first", "b"): 0.1, ("second", "a"): 0.6, ("second", "b"): 0.8}


def test_the_hand_matrix_of_the_card() -> None:
    ((first, second),) = sequences([a_run(CHAIN, SCORES)])
    assert (first.tasks, first.scores, first.overall, first.backward) == (("a",), (0.9,), 0.9, None)
    assert (second.tasks, second.scores) == (("b",), (0.6, 0.8))
    assert second.overall == pytest.approx(0.70)
    assert second.backward == pytest.approx(-0.30)
    assert second.backward_by_rounds == pytest.approx(-0.15)


def test_seeds_are_averaged_and_tasks_of_one_round_too() -> None:
    chain = {"first": {"model": "base", "tasks": ["a", "b"]}, "second": {"model": "first", "tasks": ["c"]}}
    scores = {(node, task): 0.5 for node in chain for task in "abc"}
    other = scores | {("second", "a"): 0.1}
    ((_, second),) = sequences([a_run(chain, scores), a_run(chain, other)])
    assert second.scores == pytest.approx((0.4, 0.5))
    assert second.backward == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "run",
    [
        a_run({"joint": {"model": "base", "tasks": ["a"]}}, {("joint", "a"): 0.5}),  # one step
        a_run(CHAIN | {"second": {"model": "first", "tasks": ["a"]}}, SCORES),  # nothing new
        a_run(CHAIN, {key: value for key, value in SCORES.items() if key != ("second", "a")}),  # not scored
        a_run(CHAIN, SCORES, metric="mse"),  # lower is better
        a_run({}, {}),
    ],
)
def test_what_is_no_sequence_is_left_out(run: Run) -> None:
    assert sequences([run]) == []


def test_branches_are_sequences_of_their_own() -> None:
    tree = CHAIN | {"other": {"model": "first", "tasks": ["b"]}}
    found = sequences([a_run(tree, SCORES | {("other", "a"): 0.2, ("other", "b"): 0.3})])
    assert [[one.node for one in rounds] for rounds in found] == [["first", "second"], ["first", "other"]]
