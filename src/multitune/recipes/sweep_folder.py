"""The folder of a sweep: shared results of nodes, and an ordinary run folder per variant that leads to them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from multitune.errors import MultituneError
from multitune.recipes.run_folder import (
    RunFolder,
    begin_facts,
    empty,
    record_facts,
    refuse_strangers,
    remove,
    write_whole,
)
from multitune.recipes.sweep import Sweep

_NOT_SHOWN = {"checkpoints", "begun.json"}


class SweepFolder:
    """Paths of a sweep.

    Layout: ``sweep.json`` (axes and variants), ``run.json``, ``scoreboard.parquet`` with a column for the variant,
    ``report.html``, ``nodes/<fingerprint>/`` with what a node of any variant left, and ``variants/<name>/``, run
    folders whose ``steps/<node>`` lead to these.
    """

    def __init__(self, path: Path, sweep: Sweep) -> None:
        self.path = path
        self.sweep = sweep
        self.scoreboard = path / "scoreboard.parquet"

    def variant(self, name: str) -> RunFolder:
        """Return the run folder of a variant."""
        return RunFolder(self.path / "variants" / name)

    def prepare(self, command: str, *, fresh: bool) -> None:
        """Make the folder ready: refuse one that is no sweep, empty it when ``fresh``, write axes, recipes and facts.

        Folders of variants that the sweep no longer has stay as they are.

        Raises:
            MultituneError: the folder holds something else, or cannot be written.
        """
        refuse_strangers(self.path)
        if fresh:
            empty(self.path)
        if (self.path / "recipe.yaml").exists():
            raise MultituneError(
                "The folder holds a run without a sweep, and the recipe has one.",
                str(self.path),
                "Choose another folder with --out, or forget the run with --fresh.",
            )
        write_whole(self.path / "sweep.json", json.dumps(_described(self.sweep), indent=2) + "\n")
        begin_facts(self.path, {"name": self.sweep.name, "variants": len(self.sweep.variants)}, command)
        for variant in self.sweep.variants:
            self.variant(variant.name).prepare(variant.recipe, command, fresh=False)

    def record(self, command: str, seconds: float) -> None:
        """Write run.json anew after an invocation that did something."""
        record_facts(self.path, {"name": self.sweep.name, "variants": len(self.sweep.variants)}, command, seconds)


def link_results(step: Path, places: Sequence[Path]) -> None:
    """Let a variant's step lead to the folders of its nodes, and to nothing else in them that is out of date.

    What a plain run has written into the step itself is replaced where a node has left the same; links are relative,
    so that the sweep's folder can be moved.

    Args:
        step: ``variants/<name>/steps/<node>``.
        places: the folders of the finished nodes that share this step: the training, the scoring.
    """
    wanted = {
        entry.name: Path(os.path.relpath(entry, step))
        for place in places
        for entry in sorted(place.iterdir())
        if entry.name not in _NOT_SHOWN and entry.suffix != ".partial"
    }
    step.mkdir(parents=True, exist_ok=True)
    for entry in sorted(step.iterdir()):
        if entry.is_symlink() and wanted.get(entry.name) != entry.readlink():
            entry.unlink()
    for name, target in wanted.items():
        if not (step / name).is_symlink():
            remove(step / name)
            (step / name).symlink_to(target)


def _described(sweep: Sweep) -> dict[str, object]:
    return {
        "name": sweep.name,
        "axes": [
            {"name": axis.name, "key": axis.key, "values": [value.name for value in axis.values]} for axis in sweep.axes
        ],
        "variants": [{"name": variant.name, "values": dict(variant.values)} for variant in sweep.variants],
    }
