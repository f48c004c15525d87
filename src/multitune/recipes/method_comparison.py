"""A recipe as a sweep over methods of adaptation, and what each of them cost and reached."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multitune.adaptation.methods import METHODS, NOT_OFFERED
from multitune.errors import MultituneError, nearest
from multitune.recipes.loading import load
from multitune.recipes.reading import read_yaml
from multitune.recipes.sweep import Sweep

COSTS = ("trainable", "share", "bytes", "peak_bytes", "step_seconds", "tokens_per_second")
"""What a cost record tells; a model that was trained before records were kept has the first and third alone."""


def method_sweep(
    recipe: Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    budget: float | None,
    rates: Sequence[float],
    step: str | None,
    *,
    many: bool = False,
) -> tuple[Sweep, str]:
    """Return the recipe's sweep with methods (and learning rates) as further axes, and the train step that they set.

    Args:
        recipe: its file.
        overrides: ``key.path=value`` assignments.
        methods: by the registry's names.
        budget: as in `AdaptationConfig`; methods without a size must fit into it.
        rates: learning rates that every method is tried with; none: the recipe's.
        step: the train step; None where there is one alone.
        many: whether there may be more variants than a sweep has without a word.

    Raises:
        MultituneError: no method, one that does not exist or is named twice, no train step or several; whatever is
            wrong with the recipe.
    """
    for method in methods:
        if method not in METHODS or method in NOT_OFFERED:
            raise MultituneError(
                f"There is no method '{method}'.{nearest(method, METHODS)}", "--methods", "See `multitune methods`."
            )
    if len(set(methods)) < max(2, len(methods)):
        raise MultituneError(
            "A comparison needs two methods or more, each named once.",
            "--methods",
            "Name several: --methods lora vera.",
        )
    declared = read_yaml(recipe).data
    name = step or _only_train_step(declared.get("steps") or {"joint": {}})
    axes = dict(declared.get("sweep") or {})
    axes[f"steps.{name}.adapt"] = {method: _adaptation(method, budget) for method in methods}
    if rates:
        axes[f"steps.{name}.training.learning_rate"] = list(rates)
    sweep = load(recipe, [*overrides, f"sweep={json.dumps(axes)}"], many=many)
    assert isinstance(sweep, Sweep)
    return sweep, name


def _adaptation(method: str, budget: float | None) -> dict[str, Any]:
    sized = budget is not None and METHODS[method].size is not None
    return {"method": method, "budget": budget} if sized else {"method": method}


def _only_train_step(steps: Any) -> str:
    found = [
        name
        for name, step in (steps.items() if isinstance(steps, dict) else ())
        if not isinstance(step, dict) or step.get("do", "train") == "train"
    ]
    if len(found) != 1:
        raise MultituneError(
            f"The recipe has {len(found)} train steps{': ' + ', '.join(found) if found else ''}.",
            "steps",
            "Name the one whose methods are compared with --step.",
        )
    return str(found[0])


def compared(folder: Path, sweep: Sweep, step: str) -> list[dict[str, Any]]:
    """Return what every variant cost and reached, the best mean first.

    Args:
        folder: of the sweep, run.
        sweep: as run.
        step: the train step that was adapted.

    Returns:
        per variant: its name and axis values, its cost record (see `multitune.recipes.cost`), seconds of training, the
        first metric of every task, and their mean (of errors the negative).
    """
    from multitune.scoring.scoreboard import Scoreboard
    from multitune.tasks.metrics import metric

    rows = []
    for variant in sweep.variants:
        place = folder / "variants" / variant.name
        facts = json.loads((place / "steps" / step / "artifact.json").read_text(encoding="utf-8"))
        tasks: dict[str, float] = {}
        signed: dict[str, float] = {}
        for row in Scoreboard.load(place / "scoreboard.parquet").rows:
            if row["step"] == step and row["task"] not in tasks:
                tasks[row["task"]] = row["value"]
                signed[row["task"]] = row["value"] if metric(row["metric"]).higher_is_better else -row["value"]
        rows.append(
            {
                "variant": variant.name,
                "axes": dict(variant.values),
                **dict.fromkeys(COSTS),
                **facts.get("cost", {}),
                "trainable": facts["trainable_parameters"],
                "bytes": sum(file.stat().st_size for file in (place / "steps" / step / "model").glob("*.safetensors")),
                "seconds": facts["seconds"],
                "mean": math.fsum(signed.values()) / len(signed) if signed else math.nan,
                "tasks": tasks,
            }
        )
    return sorted(rows, key=lambda row: -row["mean"])
