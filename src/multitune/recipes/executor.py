"""Brings a run folder up to date: does what is not done yet, and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.recipes.cluster import RayCluster
from multitune.recipes.failures import Failure, NodesFailed
from multitune.recipes.node import Opened, ScoringProgress, do, is_finished, prepare
from multitune.recipes.parallel import Workers, side_by_side
from multitune.recipes.processes import LocalProcesses
from multitune.recipes.results import Results
from multitune.recipes.run_folder import WRITING_FAILED, RunFolder, disk_error, locked_and_clean
from multitune.recipes.schema import Recipe
from multitune.recipes.sweep import Sweep, Variant
from multitune.recipes.sweep_folder import SweepFolder
from multitune.recipes.work import Work, lay_out
from multitune.training.processes import broadcast, is_main, leave, world_size

logger = logging.getLogger("multitune.recipes")

END = ""
"""What the main process announces to the others when nothing is left to be done."""


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        folder: of the run.
        done: nodes that were worked on.
        kept: nodes that stood already.
        seconds: wall time.
    """

    folder: Path
    done: tuple[str, ...]
    kept: tuple[str, ...]
    seconds: float


def run(
    recipe: Recipe | Sweep,
    out: Path,
    *,
    fresh: bool = False,
    command: str = "",
    progress: ScoringProgress | None = None,
    jobs: int | None = None,
    ray: str | None = None,
) -> RunResult:
    """Run a recipe or a sweep into a folder; go on where an earlier run of it stopped.

    A node whose inputs are those of its finished result is kept. A changed node is done again, and with it what reads
    its model. A killed training goes on from its last whole checkpoint. In a sweep, variants share equal nodes. In a
    sweep and with several jobs, a node that fails does not lose the others: those that do not need it are done, and the
    failures told at the end.

    Args:
        recipe: checked by ``load``.
        out: the run folder; made when it does not exist.
        fresh: forget what the folder holds.
        command: as shown in ``run.json`` and in how to go on.
        progress: called with (task, examples done, examples in all) while scoring, of a node in this process.
        jobs: nodes at once, in processes of their own if there are several; these share out the cores.
        ray: address of a Ray cluster that does the nodes instead, or "local"; see ``RayCluster``.

    Raises:
        MultituneError: whatever is wrong with data, model, folder or training.
        NodesFailed: the nodes that failed of a sweep, of several jobs, or on a cluster; the others are done.
        KeyboardInterrupt: someone asked to stop; the same command goes on.
    """
    if (ray or (jobs or 1) > 1) and world_size() > 1:
        option = "--ray" if ray else "--jobs"
        raise MultituneError(
            f"A launcher has started {world_size()} processes for each step, and {option} would start more.",
            option,
            f"Use the launcher for one large step at a time, or {option} without it for many small ones.",
        )
    if not is_main():
        _follow(recipe, Path(out))
        return RunResult(Path(out), (), (), 0.0)
    started = time.monotonic()
    with locked_and_clean(Path(out)) as lock, _disk_errors(Path(out)):
        run = _prepared(recipe, Path(out), command, fresh)
        kept = tuple(work.label for work in run.works if work.key in run.results.finished)
        try:
            if (ray or (jobs or 1) > 1) and len(kept) < len(run.works):
                workers: Workers = RayCluster(ray, jobs) if ray else LocalProcesses(jobs or 1, lock)
                run.worked = True
                failures = side_by_side(run.works, run.opened, run.results.finished, workers, run.show)
            else:
                # a node that fails on one of several processes leaves the others waiting: all of them end
                failures = _in_turn(run, progress, keep_going=isinstance(recipe, Sweep) and world_size() == 1)
            broadcast(END)
            leave()
        finally:
            seconds = time.monotonic() - started
            run.record(command, seconds)
    if failures:
        raise NodesFailed(failures) from failures[0].cause
    return RunResult(run.folder.path, run.done, kept, seconds)


@dataclass
class _Run:
    """What is to be done, and what has been done of it.

    Attributes:
        folder: of the run.
        variants, opened: of the sweep; of a plain recipe the one that it is.
        works: all nodes, done or not.
        results: where they are shown.
        seconds: of every node done in this invocation, by key.
    """

    folder: RunFolder | SweepFolder
    variants: Sequence[Variant]
    opened: Sequence[Opened]
    works: Sequence[Work]
    results: Results
    seconds: dict[str, float] = field(default_factory=dict)
    worked: bool = False

    @property
    def done(self) -> tuple[str, ...]:
        """Labels of what was done in this invocation."""
        return tuple(work.label for work in self.works if work.key in self.seconds)

    def show(self, work: Work, seconds: float) -> None:
        """Take in a node that was just done."""
        self.seconds[work.key] = seconds
        self.results.show([work], new=True)

    def record(self, command: str, seconds: float) -> None:
        """Write the facts of this invocation, if it did anything."""
        if not self.worked:
            return
        if isinstance(self.folder, RunFolder):
            self.folder.record(self.variants[0].recipe, command, seconds)
            return
        self.folder.record(command, seconds)
        for index, variant in enumerate(self.variants):
            own = [self.seconds.get(work.key, 0.0) for work in self.works if index in work.variants]
            if any(own):
                self.folder.variant(variant.name).record(variant.recipe, command, sum(own))


def _prepared(recipe: Recipe | Sweep, out: Path, command: str, fresh: bool) -> _Run:
    folder: RunFolder | SweepFolder
    if isinstance(recipe, Sweep):
        folder, variants = SweepFolder(out, recipe), recipe.variants
        folder.prepare(command, fresh=fresh)
        folders = [folder.variant(variant.name) for variant in variants]
    else:
        folder, variants = RunFolder(out), (Variant("", {}, recipe),)
        folder.prepare(recipe, command, fresh=fresh)
        folders = [folder]
    resolved: dict[str, Any] = {}
    opened = [Opened(variant.recipe, resolved) for variant in variants]
    swept = isinstance(recipe, Sweep)
    works = lay_out(variants, opened, out, swept=swept)
    results = Results(variants, folders, works, folder.scoreboard, swept=swept)
    results.show([work for work in works if is_finished(work.node, work.place, work.fingerprint)], new=False)
    return _Run(folder, variants, opened, works, results)


def _in_turn(run: _Run, progress: ScoringProgress | None, *, keep_going: bool) -> list[Failure]:
    """Do one node after the other in this process; return what failed, or raise it at once."""
    failures = []
    for place, work in enumerate(run.works, start=1):
        finished = run.results.finished
        if work.key in finished or not finished.issuperset(work.needs):
            continue  # it stands, or what it needs has failed
        run.worked = True
        started = time.monotonic()
        if len(run.works) > 1:
            logger.info("[%d/%d] %s", place, len(run.works), work.label)
        try:
            prepare(work.node, work.place, work.fingerprint)
            broadcast(work.key)
            do(work.node, run.opened[work.variant], work.place, work.models, work.fingerprint, progress)
        except Exception as error:
            if not keep_going:
                raise
            failures.append(Failure.of(work.label, error))
            logger.warning("%s failed: %s", work.label, failures[-1].errors[0].what)
            continue
        run.show(work, time.monotonic() - started)
    return failures


def _follow(recipe: Recipe | Sweep, out: Path) -> None:
    """Do, beside the main process, the nodes that it announces; it alone keeps the run folder."""
    swept = isinstance(recipe, Sweep)
    variants = recipe.variants if isinstance(recipe, Sweep) else (Variant("", {}, recipe),)
    resolved: dict[str, Any] = {}
    opened = [Opened(variant.recipe, resolved) for variant in variants]
    works = {work.key: work for work in lay_out(variants, opened, out, swept=swept)}
    while (key := broadcast(END)) != END:
        work = works[key]
        do(work.node, opened[work.variant], work.place, work.models, work.fingerprint)
    leave()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Tell a full or forbidden disk in our words."""
    try:
        yield
    except OSError as error:
        if error.errno not in WRITING_FAILED:
            raise
        raise disk_error(error, Path(error.filename or folder)) from error
