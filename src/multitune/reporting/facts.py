"""What ran: the header's facts, versions, every score, and how the models that a run left are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multitune.recipes.cards import loading_code
from multitune.reporting.run_folder import Run

NO_MODEL = "none; before: the mean, or the most frequent class, of the training rows"

# Facts of run.json that the header tells, in this order; everything else in it stands with the versions.
HEADER_FACTS = ("machine", "command", "started", "seconds")


@dataclass(frozen=True)
class Fact:
    """One line of the header or of the details."""

    name: str
    value: str


@dataclass(frozen=True)
class SavedModel:
    """A model that a run left: its folder inside the run, and the lines of Python that load it."""

    node: str
    folder: str
    code: str


@dataclass(frozen=True)
class ScoreRow:
    """One task's metric at every node, as on the scoreboard; the mean over runs where there are several.

    ``intervals_at`` are the scores' own 95 % intervals, of a single run.
    """

    task: str
    split: str
    metric: str
    n: int
    values_at: dict[str, float]
    intervals_at: dict[str, tuple[float, float]]


def overview(runs: Sequence[Run]) -> list[Fact]:
    """Return the facts of the header: model, steps, seeds, machine, command, start and duration."""
    first = runs[0]
    seeds = ", ".join(str(run.seed) for run in runs)
    found = [
        Fact("model", model_name(first)),
        Fact("steps", ", ".join(_steps(first)) or "none: the base is scored"),
        Fact("seed" if len(runs) == 1 else "seeds", seeds),
        Fact("run" if len(runs) == 1 else "runs", ", ".join(run.folder.resolve().name for run in runs)),
    ]
    for name in HEADER_FACTS:
        if name == "seconds":
            found += _durations(runs)
        elif name == "started" and first.facts.get(name):
            found.append(Fact(name, str(first.facts[name]).replace("T", " ").replace("+00:00", " UTC")))
        elif first.facts.get(name):
            found.append(Fact(name, _told(first.facts[name])))
    versions = first.facts.get("versions")
    if isinstance(versions, Mapping):
        wanted = [f"{name} {versions[name]}" for name in ("multitune", "torch", "transformers") if versions.get(name)]
        found.append(Fact("versions", ", ".join(wanted)))
    return found


def model_name(run: Run) -> str:
    """Return the name of the model that the recipe adapts, and what stands in its place where it has none."""
    model = run.recipe.get("model", NO_MODEL)
    return str(model.get("name", "")) if isinstance(model, Mapping) else str(model)


def _steps(run: Run) -> list[str]:
    """Return each step in a few words: its name, what it does and how it adapts."""
    told = []
    for name, step in (run.recipe.get("steps") or {}).items():
        adapt = step.get("adapt") if isinstance(step, Mapping) else None
        method = adapt.get("method") if isinstance(adapt, Mapping) else None
        action = step.get("do", "train") if isinstance(step, Mapping) else "train"
        method = step.get("estimator", method) if isinstance(step, Mapping) else method
        told.append(f"{name} ({action}{', ' + str(method) if method else ''})")
    return told


def _durations(runs: Sequence[Run]) -> list[Fact]:
    seconds = [float(run.facts["seconds"]) for run in runs if run.facts.get("seconds") is not None]
    if not seconds:
        return []
    return [Fact("duration" if len(seconds) == 1 else "durations", ", ".join(duration(value) for value in seconds))]


def duration(seconds: float) -> str:
    """Return a time as people say it: 48 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _told(value: Any) -> str:
    """Return a fact of run.json on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value)


def details(runs: Sequence[Run]) -> list[Fact]:
    """Return everything in run.json, one line per fact, nested names joined by a dot."""
    return [Fact(name, value) for name, value in _flat("", runs[0].facts)]


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for name, item in value.items() for pair in _flat(f"{prefix}.{name}" if prefix else name, item)]
    return [(prefix, _told(value))]


def all_scores(runs: Sequence[Run]) -> list[ScoreRow]:
    """Return every metric of every task at every node."""
    collected: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        for row in run.scores:
            place = (str(row["task"]), str(row["split"]), str(row["metric"]))
            collected.setdefault(place, {}).setdefault(str(row["step"]), []).append(row)
    return [
        ScoreRow(
            *place,
            n=max(row["n"] for rows in by_node.values() for row in rows),
            values_at={node: sum(row["value"] for row in rows) / len(rows) for node, rows in by_node.items()},
            intervals_at={node: (rows[0]["low"], rows[0]["high"]) for node, rows in by_node.items() if len(rows) == 1},
        )
        for place, by_node in collected.items()
    ]


def saved_models(run: Run) -> list[str]:
    """Return the nodes that left a model."""
    steps = run.folder / "steps"
    return sorted(path.parent.name for path in steps.glob("*/model") if path.is_dir()) if steps.is_dir() else []


def how_to_load(run: Run, node: str) -> SavedModel:
    """Return the lines of Python that load a node's model with the ecosystem's own classes."""
    folder = f"steps/{node}/model"
    return SavedModel(node, folder, loading_code(run.folder / folder, model_name(run), str(run.folder / folder)))
