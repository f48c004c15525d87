"""Chains of train steps as rounds: what every task scores after every round, overall performance, backward transfer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from multitune.reporting.comparison import higher_is_better, main_metric, value_of
from multitune.reporting.run_folder import Run
from multitune.scoring.continual import backward_transfer, overall_performance


@dataclass(frozen=True)
class Round:
    """One train step of a chain.

    Attributes:
        node: its name.
        tasks: what is new in it, the part of the sequence that it stands for.
        scores: mean score of every round's new tasks after it, as far as the rounds have come; nan never occurs.
        overall: OP, the mean of the scores.
        backward: BWT divided by the earlier rounds; None in the first.
        backward_by_rounds: the same divided by all rounds.
    """

    node: str
    tasks: tuple[str, ...]
    scores: tuple[float, ...]
    overall: float
    backward: float | None
    backward_by_rounds: float | None


def sequences(runs: Sequence[Run]) -> list[list[Round]]:
    """Return every chain of at least two train steps that each bring new tasks and were all scored on them.

    Args:
        runs: of one recipe; scores are means over them.
    """
    found = []
    for nodes in _chains(runs[0]):
        new = _new_tasks(runs[0], nodes)
        scores = [[_mean(runs, node, tasks) for tasks in new[: place + 1]] for place, node in enumerate(nodes)]
        if all(new) and all(score is not None for row in scores for score in row):
            known = [[score for score in row if score is not None] for row in scores]
            found.append([_round(node, new[place], known[: place + 1]) for place, node in enumerate(nodes)])
    return found


def _chains(run: Run) -> list[list[str]]:
    """Return the train nodes on the way to every last one, from the recipe's own model."""
    parents = {node: str(artifact.get("model", "")) for node, artifact in run.artifacts.items()}
    chains = []
    for node in parents:
        if node not in parents.values():
            chain = [node]
            while parents[chain[0]] in parents and parents[chain[0]] not in chain:
                chain.insert(0, parents[chain[0]])
            chains.append(chain)
    return [chain for chain in chains if len(chain) > 1]


def _new_tasks(run: Run, nodes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the tasks of every node that none before it trained; rows that are replayed make no task new."""
    seen: set[str] = set()
    new = []
    for node in nodes:
        tasks = [str(task) for task in run.artifacts[node].get("tasks", ())]
        new.append(tuple(task for task in tasks if task not in seen))
        seen.update(tasks)
    return new


def _mean(runs: Sequence[Run], node: str, tasks: Sequence[str]) -> float | None:
    """Return the mean over tasks and runs of the tasks' main metrics; None where one is missing or lower is better."""
    values = []
    for run in runs:
        for task in tasks:
            if task not in run.tasks:
                return None
            metric, split = main_metric(run, task)
            value = value_of(run, node, task, split, metric)
            if value is None or not higher_is_better(metric):
                return None
            values.append(value[0])
    return statistics.fmean(values) if values else None


def _round(node: str, tasks: tuple[str, ...], scores: Sequence[Sequence[float]]) -> Round:
    several = len(scores) > 1
    return Round(
        node,
        tasks,
        tuple(scores[-1]),
        overall_performance(scores),
        backward_transfer(scores, "t-1") if several else None,
        backward_transfer(scores, "t") if several else None,
    )
