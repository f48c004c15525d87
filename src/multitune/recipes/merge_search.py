"""Candidates of a merge: which there are, how each does on validation rows, and which is the best of them.

Candidates that differ only in factors of one merged task vector (``lambda``, LiNeS' ``alpha`` and ``beta``) share one
pass over the weights: theta = base + factor(layer) * tau is written into one loaded model, candidate after candidate.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError, nearest
from multitune.weights.config import Lines, MergeConfig
from multitune.weights.learned.step_config import LEARNED_METHODS
from multitune.weights.parameters import METHOD_PARAMETERS, check

if TYPE_CHECKING:
    from torch import Tensor

    from multitune.models.architecture import TensorPlace
    from multitune.models.loading import Backbone
    from multitune.recipes.schema import MergeStep, Recipe
    from multitune.scoring.score import TaskScore

logger = logging.getLogger("multitune.recipes")

SEARCH_FILE = "search.json"

SCALED = frozenset(
    {
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "della",
        "della_linear",
        "breadcrumbs",
        "breadcrumbs_ties",
    }
)
"""Methods whose result is base + lambda * tau, where tau does not depend on lambda."""

Over = Mapping[str, Sequence[float | str]]
Evaluate = Callable[["Backbone"], "list[TaskScore]"]


@dataclass(frozen=True)
class Candidate:
    """One combination of values: its name ("lambda=0.3,method=ties"), the values, and the merge that they make."""

    name: str
    values: Mapping[str, float | str]
    config: MergeConfig


@dataclass(frozen=True)
class Tried:
    """A candidate and what it reached.

    Attributes:
        candidate: as said.
        quality: mean over tasks of the first metric, with the sign that makes more better.
        rows: what was measured, per task and metric.
    """

    candidate: Candidate
    quality: float
    rows: list[dict[str, Any]]


def searched_tasks(step: MergeStep, recipe: Recipe) -> tuple[str, ...]:
    """Return the tasks whose validation rows a step looks at: to choose among candidates, or because its method does.

    Without names these are all that have some; a method that learns from them leaves held-out tasks out.
    """
    learns = step.method in LEARNED_METHODS
    if step.search is None and not learns:
        return ()
    if step.tasks != "all":
        named = step.tasks
    else:
        named = recipe.training_tasks if learns else tuple(recipe.tasks)
    return tuple(name for name in named if name in recipe.tasks and recipe.tasks[name].validation is not None)


def candidates(config: MergeConfig, over: Over) -> list[Candidate]:
    """Return every combination of values.

    Raises:
        MultituneError: a key that is no choice of the merge, or whatever `check` says of one of the combinations.
    """
    found = []
    for point in product(*over.values()):
        values = dict(zip(over, point, strict=True))
        candidate = config
        for key, value in values.items():
            candidate = _with_value(candidate, key, value)
        check(candidate)
        found.append(Candidate(",".join(f"{key}={_told(value)}" for key, value in values.items()), values, candidate))
    return found


def _told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _with_value(config: MergeConfig, key: str, value: float | str) -> MergeConfig:
    if key == "method":
        return config.model_copy(update={"method": str(value)})
    if key in ("lines.alpha", "lines.beta"):
        told = (config.lines or Lines()).model_dump() | {key.removeprefix("lines."): value}
        return config.model_copy(update={"lines": Lines.model_validate(told)})
    known = {*METHOD_PARAMETERS.get(config.method, {}), "method", "lines.alpha", "lines.beta"}
    if key not in {name for parameters in METHOD_PARAMETERS.values() for name in parameters}:
        raise MultituneError(
            f"A merge has nothing called '{key}' to search over.{nearest(key, known)}",
            f"search.over.{key}",
            f"Use some of: {', '.join(sorted(known))}.",
        )
    own = next((each for each in config.models if key in each.parameters), None)
    if own is not None:
        raise MultituneError(
            f"The model '{own.model}' has a {key} of its own, which goes before the searched one.",
            f"search.over.{key}",
            f"Take {key} out of the model's parameters.",
        )
    return config.model_copy(update={"parameters": {**config.parameters, key: value}})


def search(
    base: Path | None,
    found: Sequence[Candidate],
    make: Callable[[MergeConfig, Path], float | None],
    load: Callable[[Path], Backbone],
    evaluate: Evaluate,
    folder: Path,
) -> list[Tried]:
    """Return what every candidate reaches, in their order.

    Args:
        base: folder of the base model; None where the merge has none.
        found: the candidates.
        make: writes a merge into a folder, with what loading it needs, and returns LiNeS' alpha.
        load: a written merge.
        evaluate: scores on validation rows.
        folder: where merges lie for as long as they are evaluated.
    """
    groups: dict[str, list[Candidate]] = {}
    for each in found:
        groups.setdefault(_without_factors(each.config).model_dump_json(), []).append(each)
    tried: dict[str, Tried] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for members in groups.values():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".candidate-") as temporary:
            place = Path(temporary) / "model"
            if len(members) == 1 or base is None:
                for number, member in enumerate(members):
                    make(member.config, place.with_name(f"model-{number}"))
                    backbone = load(place.with_name(f"model-{number}"))
                    tried[member.name] = _tried(member, evaluate(backbone))
                continue
            for member, backbone in _in_place(base, members, make, load, place):
                tried[member.name] = _tried(member, evaluate(backbone))
    return [tried[each.name] for each in found]


def best_of(tried: Sequence[Tried]) -> Tried:
    """Return the candidate with the best quality, the first of equals.

    Raises:
        MultituneError: none has a quality that is a number.
    """
    usable = [each for each in tried if not math.isnan(each.quality)]
    if not usable:
        raise MultituneError(
            "No candidate has a validation score.", "search", "Give the tasks validation rows that can be scored."
        )
    return max(usable, key=lambda each: each.quality)


def _tried(candidate: Candidate, scores: list[TaskScore]) -> Tried:
    from multitune.scoring.scoreboard import measures
    from multitune.tasks.metrics import metric

    values = []
    for score in scores:
        name, value = next(iter(score.metrics.items()))
        values.append(value if metric(name).higher_is_better else -value)
    quality = sum(values) / len(values) if values else math.nan
    logger.info("  %-40s %.4f on validation rows", candidate.name, quality)
    return Tried(candidate, quality, measures(scores))


def _without_factors(config: MergeConfig) -> MergeConfig:
    """Return a merge without what only scales its task vector."""
    if config.method not in SCALED or not _is_number(config.parameters.get("lambda", 1.0)):
        return config
    parameters = {name: value for name, value in config.parameters.items() if name != "lambda"}
    outside = config.lines.outside if config.lines is not None else "alpha"
    lines = Lines(alpha=0.0, beta=0.0, outside=outside) if config.lines is not None else None
    return config.model_copy(update={"parameters": parameters, "lines": lines})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _in_place(
    base: Path,
    members: Sequence[Candidate],
    make: Callable[[MergeConfig, Path], float | None],
    load: Callable[[Path], Backbone],
    place: Path,
) -> Any:
    """Yield every candidate with one model that holds its weights: theta = base + factor(layer) * tau."""
    from multitune.models.architecture import architecture_index
    from multitune.weights.parameters import default_of

    config = members[0].config
    default = default_of(METHOD_PARAMETERS[config.method]["lambda"], config.compat)
    alone = config.model_copy(
        update={"parameters": {**config.parameters, "lambda": 1.0}, "lines": None, "dtype": "float32"}
    )
    make(alone, place)
    norm = _norm_alpha(members, alone, make, place)
    backbone = load(place)
    weights = _floats(_carrier(backbone))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    places = architecture_index(shapes)
    before = _tensors(load_base(base, backbone), weights)
    delta = {name: weights[name] - before[name] for name in weights}
    for member in members:
        scale = float(member.config.parameters.get("lambda", default))
        for name, tensor in weights.items():
            factor = _factor(member.config.lines, places[name], scale, norm)
            tensor.copy_(before[name]).add_(delta[name], alpha=factor)
        yield member, backbone


def _norm_alpha(
    members: Sequence[Candidate], alone: MergeConfig, make: Callable[[MergeConfig, Path], float | None], place: Path
) -> float:
    """Return LiNeS' alpha by the norm rule at lambda 1, where a member asks for it."""
    if not any(each.config.lines is not None and each.config.lines.alpha == "norm" for each in members):
        return math.nan
    found = make(alone.model_copy(update={"lines": Lines(alpha="norm", beta=0.0)}), place.with_name("norm"))
    return math.nan if found is None else found


def _factor(lines: Lines | None, place: TensorPlace, scale: float, norm: float) -> float:
    from multitune.weights.lines import depth_factor

    if lines is None or scale == 0:
        return scale
    # scaling the merged vector by c divides the norm rule's alpha by |c|
    alpha = norm / abs(scale) if lines.alpha == "norm" else float(lines.alpha)
    return scale * depth_factor(place, lines, alpha)


def _carrier(backbone: Backbone) -> Any:
    from multitune.models.heads import MultiTaskEncoder

    return backbone.model.encoder if isinstance(backbone.model, MultiTaskEncoder) else backbone.model


def _floats(model: Any) -> dict[str, Tensor]:
    """Return a model's parameters by name, each once, as tensors that write through."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_base(base: Path, like: Backbone) -> Any:
    """Return the base model with the class, type and device of the one that is compared with it."""
    from multitune.models.config import ModelConfig
    from multitune.models.pretrained import load_pretrained

    config = ModelConfig(name=str(base), form=like.form)
    return load_pretrained(config, str(_carrier(like).device)).model


def _tensors(model: Any, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = _floats(model)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise MultituneError(
            f"The base has no tensor '{missing[0]}' that the merged model has.", "search", "Search without lambda."
        )
    return {name: found[name] for name in wanted}
