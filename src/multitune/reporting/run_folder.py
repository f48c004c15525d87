"""Reads a run folder: everything that a report may say comes from these files and from nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError
from multitune.scoring import predictions
from multitune.scoring.predictions import Prediction

CANDIDATE = "@"
"""In the step of a scoreboard row: between a merge step and the candidate of it that was scored."""

SHOTS = re.compile(r"@\d+-shot$")
"""The end of the step of a scoreboard row of a curve over demonstrations."""

BASE = "base"  # the node that scores the model before any training


@dataclass(frozen=True)
class Run:
    """One run, read from its folder.

    Attributes:
        folder: as the user gave it.
        recipe: recipe.yaml as mappings; recipe_text: the same as written.
        facts: run.json (versions, command, machine, start).
        scores: the scoreboard's rows.
        logs: per train node, the lines of its log; nodes in the order of the recipe's steps.
        artifacts: per finished node, its artifact.json.
        searches: per merge node that compared candidates, its search.json; their rows are not among ``scores``.
        learned: per merge node that looked at rows itself, its coefficients.json.
        evaluations: per train node that evaluated validation rows, the lines of validation.jsonl.
        curves: the scoreboard's rows of curves over demonstrations; they are not among ``scores``.
        by_template: the scoreboard's rows of single templates, of tasks whose templates were told apart.
    """

    folder: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    facts: Mapping[str, Any]
    scores: list[dict[str, Any]]
    logs: Mapping[str, list[dict[str, Any]]]
    artifacts: Mapping[str, Mapping[str, Any]]
    evaluations: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    searches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    learned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    by_template: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's where the recipe has none."""
        return str(self.recipe.get("name") or self.folder.resolve().name)

    @property
    def seed(self) -> int:
        """The run's seed; 0 is the recipe's default."""
        return int(self.recipe.get("seed", 0))

    @property
    def nodes(self) -> list[str]:
        """Every node with scores, in the order in which they were scored; the base first."""
        nodes = list(dict.fromkeys(str(row["step"]) for row in self.scores))
        return sorted(nodes, key=lambda node: node != BASE)

    @property
    def tasks(self) -> list[str]:
        """Every task with scores, in the order of the scoreboard."""
        return list(dict.fromkeys(str(row["task"]) for row in self.scores))

    def task_settings(self, task: str) -> Mapping[str, Any]:
        """What the recipe says about a task; empty when the recipe names a suite file instead."""
        tasks = self.recipe.get("tasks")
        settings = tasks.get(task) if isinstance(tasks, Mapping) else None
        return settings if isinstance(settings, Mapping) else {}


def is_run(folder: Path) -> bool:
    """Whether a folder was left by `multitune run`."""
    return (folder / "run.json").is_file() or (folder / "recipe.yaml").is_file()


def read_run(folder: Path) -> Run:
    """Read a run folder; finished and interrupted runs alike, as long as something has been scored.

    Raises:
        MultituneError: the folder is not a run, or nothing in it has been scored yet.
    """
    import yaml

    from multitune.scoring.scoreboard import Scoreboard, as_chosen, of_templates

    if not is_run(folder):
        raise MultituneError(
            f"{folder} is not a run folder: it has neither run.json nor recipe.yaml.",
            str(folder),
            "Give a folder that `multitune run` has left.",
        )
    board = folder / "scoreboard.parquet"
    if not board.is_file():
        raise MultituneError(
            f"Nothing has been scored in {folder} yet: scoreboard.parquet is absent.",
            str(board),
            "Let the run go on with `multitune run`, with scoring switched on in the recipe.",
        )
    every = Scoreboard.load(board).rows
    rows = as_chosen(every)
    text = read_text(folder / "recipe.yaml")
    steps = folder / "steps"
    recipe = yaml.safe_load(text) or {}
    order = list(recipe.get("steps") or {})
    nodes = sorted(
        (path.name for path in steps.glob("*") if path.is_dir()),
        key=lambda node: (order.index(step) if (step := node.partition(".")[0]) in order else len(order), node),
    )
    return Run(
        folder=folder,
        recipe=recipe,
        recipe_text=text,
        facts=read_json(folder / "run.json"),
        scores=[row for row in rows if CANDIDATE not in row["step"]] or rows,  # a run of curves alone has them only
        curves=[row for row in rows if SHOTS.search(row["step"])],
        by_template=of_templates(every),
        searches={node: found for node in nodes if (found := read_json(steps / node / "search.json"))},
        learned={node: found for node in nodes if (found := read_json(steps / node / "coefficients.json"))},
        logs={node: lines for node in nodes if (lines := read_json_lines(steps / node / "log.jsonl"))},
        evaluations={node: lines for node in nodes if (lines := read_json_lines(steps / node / "validation.jsonl"))},
        artifacts={node: facts for node in nodes if (facts := read_json(steps / node / "artifact.json"))},
    )


def read_predictions(run: Run, node: str, task: str) -> list[Prediction]:
    """Return what a node's model answered to a task's rows, in the order of the file; [] when nothing was kept."""
    path = run.folder / "steps" / node / "predictions" / f"{task}.jsonl"
    return predictions.read_predictions(path) if path.is_file() else []


def read_text(path: Path) -> str:
    """Return a file's text, "" when it does not exist."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, {} when it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return a file's JSON objects, one per line; a last line that a killed run cut short is left out."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.rstrip().endswith("}")]
