"""Walks the graph with several nodes at once, each somewhere else: in a process of this machine or on a cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from multitune.errors import MultituneError
from multitune.recipes.failures import Failure
from multitune.recipes.graph import ScoreNode
from multitune.recipes.node import Opened, prepare
from multitune.recipes.work import Work
from multitune.training.interrupts import stop_on_signals

logger = logging.getLogger("multitune.recipes")


class Workers(Protocol):
    """Where nodes are done. ``LocalProcesses`` says what the methods do."""

    slots: int

    def start(self, key: str, arguments: Mapping[str, Any]) -> None:
        """Start a node."""

    def next_ended(self, seconds: float) -> tuple[str, dict[str, Any]] | None:
        """Return a node that ended."""

    def ask_to_stop(self) -> None:
        """Let nodes stop after a checkpoint."""

    def close(self) -> None:
        """End what still runs."""


def side_by_side(
    works: Sequence[Work],
    opened: Sequence[Opened],
    finished: set[str],
    workers: Workers,
    done: Callable[[Work, float], None],
) -> list[Failure]:
    """Do what is not finished, as many nodes at once as there are slots; return what failed.

    A node starts when the one that it reads has ended; a node that fails loses those that read it, and no others.

    Args:
        works: all nodes of the run, each after the one that it reads.
        opened: the recipes of the variants.
        finished: keys of the nodes that stand; ``done`` adds to it.
        workers: where nodes are done.
        done: called in this process with every node that was done, and its seconds.

    Raises:
        KeyboardInterrupt: someone asked to stop; every node that ran has stopped after its checkpoint.
    """
    waiting = [work for work in works if work.key not in finished]
    running: dict[str, tuple[Work, float]] = {}
    failures: list[Failure] = []
    count, stopping = len(waiting), False
    with stop_on_signals() as request:
        try:
            while waiting or running:
                if request.requested and not stopping:
                    logger.info("stopping; what runs finishes its step and its checkpoint")
                    stopping = True
                    waiting.clear()
                    workers.ask_to_stop()
                ready = [work for work in waiting if finished.issuperset(work.needs)]
                for work in ready[: workers.slots - len(running)]:
                    waiting.remove(work)
                    running[work.key] = work, time.monotonic()
                    _start(work, opened[work.variant], workers)
                    logger.info("%s: begins, %d of %d to do", work.label, count - len(waiting), count)
                if not running:
                    break  # what still waits needs something that failed
                ended = workers.next_ended(0.2)
                if ended is None:
                    continue
                work, started = running.pop(ended[0])
                seconds = time.monotonic() - started
                if ended[1]["status"] == "done":
                    logger.info("%s: done in %.0f seconds", work.label, seconds)
                    done(work, seconds)
                elif not (stopping and ended[1]["status"] == "interrupted"):
                    failures.append(_failure(work, ended[1]))
                    logger.warning("%s: failed: %s", work.label, failures[-1].errors[0].what)
        finally:
            workers.close()
    if stopping:
        raise KeyboardInterrupt
    for work in waiting:
        logger.warning("%s: not begun, for what it reads has failed", work.label)
    return failures


def _start(work: Work, opened: Opened, workers: Workers) -> None:
    prepare(work.node, work.place, work.fingerprint)
    work.place.mkdir(parents=True, exist_ok=True)
    log = work.place / ("score.log" if isinstance(work.node, ScoreNode) else "train.log")
    arguments = {
        "recipe": opened.recipe.model_dump(mode="json", exclude_unset=True, exclude={"folder"}),
        "folder": str(opened.recipe.folder),
        "node": work.node.name,
        "place": str(work.place.resolve()),
        "models": {name: str(folder.resolve()) if folder else None for name, folder in work.models.items()},
        "inputs": work.fingerprint,
        "log": str(log.resolve()),
    }
    workers.start(work.key, arguments)


def _failure(work: Work, outcome: Mapping[str, Any]) -> Failure:
    if outcome["status"] == "interrupted":
        stopped = MultituneError("It was stopped from outside.", str(work.place), "Run the same command again.")
        return Failure(work.label, (stopped,), bug=True)
    errors = tuple(MultituneError(one["what"], one["where"], one["mend"]) for one in outcome["errors"])
    return Failure(work.label, errors, bug=outcome["status"] == "failure")
