"""System 24, LiNeS: a task vector scaled by depth keeps the new skill and gives the old ones back.

The small reproduction teaches a decoder that knows three skills a fourth one, scales what that changed in three ways,
and compares what is left of the three at the same accuracy on the fourth.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.hft import held_out, new_skills, old_skills, pretrained, tune
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

    from multitune.models.architecture import TensorPlace

TUNING = {"learning_rate": 3e-4, "rows": 64, "accuracy": 0.90, "every": 5, "most": 1500, "held_out": 400}
POINTS = 21
LEVELS = (0.3, 0.5, 0.7, 0.8)

State = dict[str, "Tensor"]


@lru_cache(maxsize=1)
def tuned_states(seed: int, settings: tuple[tuple[str, Any], ...]) -> list[State]:
    """Return the weights after learning each of the new skills from the seed's base; the arms of a seed share them."""
    states = []
    for place, skill in enumerate(new_skills()):
        model = copy.deepcopy(pretrained(seed))
        model.requires_grad_(True)
        tune(model, skill, dict(settings), seed=10 * seed + place)
        states.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return states


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Scale each new skill's task vector as one arm says, from nothing to all of it, and measure both sides.

    Returns:
        ``control/<skill>@<level>``: mean accuracy on the old skills where the accuracy on the new one is the level,
        by interpolation between neighbouring points of the curve; ``target/<skill>``: of the whole task vector;
        ``control/<skill>``: likewise; ``before``: the base's lowest accuracy on an old skill.
    """
    base = pretrained(seed)
    tuning = tuple(sorted((name, settings[name]) for name in TUNING))
    old, rows = old_skills(seed), settings["held_out"]
    metrics = {"before": min(_accuracies(base, old, rows))}
    model = copy.deepcopy(base)
    alphas = [point / (settings["points"] - 1) for point in range(settings["points"])]
    for skill, tuned in zip(new_skills(), tuned_states(seed, tuning), strict=True):
        curve = []
        for alpha in alphas:
            edit(model, base.state_dict(), tuned, settings["schedule"], alpha)
            curve.append((_accuracies(model, [skill], rows)[0], _mean(_accuracies(model, old, rows))))
        metrics[f"target/{skill.name}"], metrics[f"control/{skill.name}"] = curve[-1]
        for level in LEVELS:
            metrics[f"control/{skill.name}@{level}"] = control_at(curve, level)
    return metrics


def edit(model: LlamaForCausalLM, base: State, tuned: State, schedule: str, alpha: float) -> None:
    """Write base + factor(layer) (tuned - base) into a model; with alpha 1 every schedule leaves the tuned weights."""
    import torch

    from multitune.models.architecture import architecture_index

    places = architecture_index({name: tuple(tensor.shape) for name, tensor in tuned.items()})
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            change = tuned[name] - base[name]
            tensor.copy_(base[name] + factor(places[name], schedule, alpha) * change)


def factor(place: TensorPlace, schedule: str, alpha: float) -> float:
    """Return what a tensor's change is multiplied by.

    ``uniform``: alpha everywhere (WiSE-FT); ``lines``: from alpha in the first block to 1 in the last; ``reversed``:
    from 1 in the first to alpha in the last; ``deepest``: as lines, with 1 for what is behind the last block.
    """
    from multitune.weights.config import Lines
    from multitune.weights.lines import depth_factor

    if schedule == "uniform" or (schedule == "reversed" and place.layer is None):
        return alpha
    if schedule == "reversed":
        return depth_factor(place, Lines(alpha=1.0, beta=alpha - 1), 1.0)
    outside = "deepest" if schedule == "deepest" else "alpha"
    return depth_factor(place, Lines.model_validate({"alpha": alpha, "beta": 1 - alpha, "outside": outside}), alpha)


def control_at(curve: Sequence[tuple[float, float]], level: float) -> float:
    """Return the control accuracy where the target accuracy is ``level``: the best that the curve crosses it at.

    Args:
        curve: (target, control) from no edit to the whole one.
        level: of target accuracy; nan where the curve does not reach it.
    """
    found = []
    for (target, control), (next_target, next_control) in pairwise(curve):
        low, high = min(target, next_target), max(target, next_target)
        if low <= level <= high:
            way = 0.5 if high == low else (level - target) / (next_target - target)
            found.append(control + way * (next_control - control))
    return max(found, default=math.nan)


def _accuracies(model: LlamaForCausalLM, skills: Sequence[Any], rows: int) -> list[float]:
    from multitune.systems.skill_language import exact_match

    return [exact_match(model, skill, held_out(skill, rows)) for skill in skills]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _arm(name: str, told: str, schedule: str) -> Arm:
    return Arm(name, told, {**TUNING, "points": POINTS, "schedule": schedule})


ARMS = (
    _arm("uniform", "every change times one factor (WiSE-FT)", "uniform"),
    _arm("LiNeS", "from alpha in the first block to 1 in the last", "lines"),
    _arm("reversed", "from 1 in the first block to alpha in the last", "reversed"),
    _arm("LiNeS, deepest", "as LiNeS; final norm and head change in full", "deepest"),
)


def _margins(arms: Mapping[str, Metrics], method: str, baseline: str) -> list[float]:
    """Return control accuracy of one arm minus another's, in every cell of a seed: new skill and level."""
    cells = [name for name in arms[method] if "@" in name]
    return [arms[method][cell] - arms[baseline][cell] for cell in cells]


CLAIMS = (
    Claim(
        "1",
        "At the same accuracy on the new skill, LiNeS leaves more of the old skills than uniform scaling does in at "
        "least 90 % of the cells (3 new skills at 4 levels).",
        "share of the cells in which LiNeS is ahead of uniform scaling",
        lambda arms: _mean([float(margin > 0) for margin in _margins(arms, "LiNeS", "uniform")]),
        0.9,
        Count(3, 3),
    ),
    Claim(
        "2",
        "It leaves 0.015 more of the old skills, or better, on average over the cells.",
        "mean accuracy on the old skills, LiNeS minus uniform, over the cells",
        lambda arms: _mean(_margins(arms, "LiNeS", "uniform")),
        0.015,
    ),
    Claim(
        "3",
        "Uniform scaling leaves more than the reversed schedule does, in every cell.",
        "share of the cells in which uniform scaling is ahead of the reversed schedule",
        lambda arms: _mean([float(margin > 0) for margin in _margins(arms, "uniform", "reversed")]),
        1.0,
        Count(3, 3),
    ),
)

SYSTEM = System(
    24,
    "LiNeS",
    "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
    "arXiv 2410.17146, ICLR 2025",
    "Scaling a task vector by layer depth gives general skill back and makes merging better.",
    "weights",
    Account(
        published=(
            "CLIP ViT-B/32 tuned on one of eight tasks falls from 48.3 to 38.0 on the seven others; scaled by depth it "
            "is at 48.0 there and loses 0.2 of 90.5 on its own.",
            "Merging eight tasks gains 4.5 points over task arithmetic, with one scalar tuned in both.",
            "Gains in language vary from none to half a point.",
        ),
        faithful=(
            "factor(l) = alpha + (1 - alpha) (l - 1) / (L - 1): the last block keeps its whole change; embeddings, "
            "final norm and head get alpha, as in the authors' code.",
            "Schedules are compared at equal accuracy on the new skill, over 21 values of alpha each.",
        ),
        deviates=(
            "A Llama of four layers, 64 wide, is pretrained on 400 facts, copying and reversing, and taught one of "
            "three other skills until it is right on 90 % of the prompts, in place of CLIP.",
            "Only the edit of one task vector is measured. Merging with LiNeS, its norm rule, WiSE-FT on top of it and "
            "soups are functions of the engine, tested and not measured here.",
            "Where a curve crosses a level several times, its best crossing counts, for all schedules alike.",
        ),
        used="""
steps:
  merged:
    do: merge
    method: task_arithmetic
    models: [alone]
    lines: {alpha: norm, beta: 0.5}
""",
        scales={
            "small": Scale(
                "Pretrains a decoder of about 170,000 parameters once per seed, tunes it to three skills and measures "
                "84 edits of each, on one CPU core; a seed takes about two minutes.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "control/SKILL@LEVEL: mean accuracy on the three old skills where the edited model's accuracy on "
                    "the new skill is LEVEL.",
                    "target/SKILL and control/SKILL: of the fine-tuned model, without any edit.",
                ),
                seeds=3,
            ),
        },
    ),
)
