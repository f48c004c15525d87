"""System 29, Model Breadcrumbs: only the middle band of every tensor's changes is merged, with one setting for any
number of tasks.

The small reproduction merges the fine-tunings of a test bed (``task_vector_testbed``) with the engine that merges
checkpoints: coefficients are tuned on two tasks, frozen, and two, four, six and eight tasks merged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from multitune.systems.task_vector_testbed import Bed, State

TASKS, TUNING_STEPS = 8, 200
TUNED_ON = 2
MERGED = (2, 4, 6, 8)
ALPHAS = [number / 10 for number in range(1, 16)]
RANDOM_ALPHAS = [number / 2 for number in range(1, 21)]


@lru_cache(maxsize=1)
def bed_of(seed: int, targets: int, steps: int) -> Bed:
    """Return the test bed of a seed; all arms of a seed share it, so the first one's seconds hold its making."""
    from multitune.systems.task_vector_testbed import build_bed

    return build_bed(seed, targets, steps)


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Merge the seed's fine-tunings as one arm says.

    Returns:
        ``alpha``: tuned on the first two tasks; ``n=2`` ... ``n=8``: mean accuracy of the merged tasks on their test
        rows, each over its own fine-tuned model's, at that alpha; ``n=2 tuned`` ...: with alpha tuned anew for that
        number of tasks; ``own``: mean accuracy of the fine-tuned models.
    """
    bed = bed_of(seed, settings["targets"], settings["tuning_steps"])
    folders = _written(bed, folder / "models")
    metrics = {"own": _mean([_accuracy(bed, tuned, place, "test") for place, tuned in enumerate(bed.fine_tuned)])}
    sums = {n: _merged_delta(bed, folders, n, settings, folder / f"merged-{n}") for n in MERGED if n <= len(bed.tasks)}
    metrics["alpha"] = frozen = _tuned_alpha(bed, sums[TUNED_ON], TUNED_ON, settings["alphas"])
    for n, delta in sums.items():
        own = _tuned_alpha(bed, delta, n, settings["alphas"])
        metrics[f"n={n}"] = _normalised(bed, delta, frozen, n, "test")
        metrics[f"n={n} tuned"] = _normalised(bed, delta, own, n, "test")
    return metrics


def _written(bed: Bed, folder: Path) -> list[Path]:
    """Write the base and the fine-tuned weights as checkpoints, the base first."""
    from safetensors.torch import save_file

    folders = []
    for name, state in [("base", bed.base.state_dict()), *((f"task-{i}", s) for i, s in enumerate(bed.fine_tuned))]:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"model_type": "residual"}), encoding="utf-8")
        folders.append(place)
    return folders


def _merged_delta(bed: Bed, folders: Sequence[Path], n: int, settings: Mapping[str, Any], out: Path) -> State:
    """Return the merged task vector of the first n tasks at coefficient 1, as the engine writes it."""
    import shutil

    from safetensors.torch import load_file

    from multitune.weights.config import MergeConfig
    from multitune.weights.merging import merge

    shutil.rmtree(out, ignore_errors=True)
    told = {
        "method": settings["method"],
        "base": str(folders[0]),
        "models": [str(folder) for folder in folders[1 : n + 1]],
        "parameters": {**settings["parameters"], "lambda": 1.0},
    }
    merge(MergeConfig.model_validate(told), out, threads=1, device="cpu")
    base = bed.base.state_dict()
    return {name: tensor - base[name] for name, tensor in load_file(out / "model.safetensors").items()}


def _tuned_alpha(bed: Bed, delta: State, n: int, alphas: Sequence[float]) -> float:
    """Return the coefficient with the best accuracy on the first n tasks' few labelled rows, the smallest of equals."""
    return max(alphas, key=lambda alpha: (_normalised(bed, delta, alpha, n, "learn"), -alpha))


def _normalised(bed: Bed, delta: State, alpha: float, n: int, rows: str) -> float:
    base = bed.base.state_dict()
    weights = {name: base[name] + alpha * change for name, change in delta.items()}
    shares = [
        _accuracy(bed, weights, place, rows) / _accuracy(bed, bed.fine_tuned[place], place, rows) for place in range(n)
    ]
    return _mean(shares)


def _accuracy(bed: Bed, weights: Mapping[str, Any], place: int, rows: str) -> float:
    from multitune.systems.task_vector_testbed import accuracy

    task = bed.tasks[place]
    return accuracy(bed.base, weights, task, task.test if rows == "test" else task.learn)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _arm(name: str, told: str, method: str, alphas: Sequence[float] = ALPHAS, **parameters: Any) -> Arm:
    settings = {"targets": TASKS, "tuning_steps": TUNING_STEPS, "alphas": list(alphas)}
    return Arm(name, told, {**settings, "method": method, "parameters": parameters})


def _band(name: str, told: str, keep: float, drop_top: float, granularity: str = "layer") -> Arm:
    return _arm(name, told, "breadcrumbs", keep=keep, drop_top=drop_top, granularity=granularity)


ARMS = (
    _arm("arithmetic", "task arithmetic: the sum of all changes", "task_arithmetic"),
    _band("top 15 %", "the largest 15 % of every tensor's changes", 0.15, 0.0),
    _band("band 15 %, 0.6 % dropped", "the next 15 % after the largest 0.6 %", 0.15, 0.006),
    _band("band 15 %, 2 % dropped", "the next 15 % after the largest 2 %", 0.15, 0.02),
    _band("band 85 %", "the next 85 % after the largest 0.6 %", 0.85, 0.006),
    _band("band 15 % by row", "the next 15 % after the largest 2 %, in every row", 0.15, 0.02, "row"),
    _arm("TIES", "TIES, its largest 20 %", "ties", density=0.2),
    _arm("random 15 %", "15 % at random, not rescaled", "dare_linear", RANDOM_ALPHAS, density=0.15, rescale=0.0),
)


def _ahead(arms: Mapping[str, Metrics], method: str, baseline: str, n: int) -> float:
    return arms[method][f"n={n}"] - arms[baseline][f"n={n}"]


CLAIMS = (
    Claim(
        "a",
        "Of four tasks and 15 % of every tensor's changes, dropping the largest 2 % first is better by 0.01 or more "
        "than keeping them.",
        "mean normalised accuracy of four merged tasks, 2 % dropped minus none dropped, alpha frozen",
        lambda arms: _ahead(arms, "band 15 %, 2 % dropped", "top 15 %", 4),
        0.01,
        Count(3, 3),
    ),
    Claim(
        "b",
        "Of six tasks, 85 % of the changes without the largest 0.6 % merge at least as well as all changes.",
        "mean normalised accuracy of six merged tasks, band of 85 % minus task arithmetic, alpha frozen",
        lambda arms: _ahead(arms, "band 85 %", "arithmetic", 6),
        0.0,
    ),
)

SYSTEM = System(
    29,
    "Breadcrumbs",
    "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
    "arXiv 2312.06795, ECCV 2024",
    "Keeping the middle band of every layer's changes merges many models with one setting.",
    "weights",
    Account(
        published=(
            "Merging up to eight fine-tunings of CLIP, the middle band of each layer's changes gives a higher "
            "normalised accuracy than the sum of all changes, by more as tasks are added.",
            "Settings tuned on few tasks keep working when more are added; the coefficient of task arithmetic has to "
            "be tuned again.",
        ),
        faithful=(
            "The mask is 0 on the largest and the smallest changes of every tensor and 1 between; the sum over tasks "
            "times one coefficient is added to the base, and nothing is rescaled.",
            "The authors' ranking along the rows of a tensor is one of the arms.",
            "The coefficient is tuned once, on two tasks, from 0.1 to 1.5, and frozen for four, six and eight.",
        ),
        deviates=(
            "A residual network of 40 tensors on 24 inputs takes the place of CLIP (the test bed of system 25), with "
            "eight new tasks, each tuned in 200 steps.",
            "Tasks are merged in one order, the first two to eight, not in all subsets.",
            "Coefficients are tuned on 150 labelled rows per task, and measured on 1000 others.",
            "The random mask has a grid of coefficients from 0.5 to 10, as it keeps the direction and not the size.",
        ),
        found=(
            "Dropping the largest changes before keeping 15 % helps in two of three seeds and does nothing in the "
            "third, with the coefficient frozen and with one tuned anew; the claim asks for all three.",
            "What a coefficient tuned on two tasks is worth for four or more differs from seed to seed by more than "
            "any mask gains or loses: one that is best for two tasks is too large for many, with a band as without. "
            "Freezing did not work better here for Breadcrumbs than for task arithmetic, which is the paper's point.",
            "With a coefficient tuned anew for every number of tasks the band of 85 % is a little ahead of task "
            "arithmetic on six tasks in every seed. Keeping 15 % costs accuracy: on this test bed every part of a task "
            "vector carries something.",
            "The simple baseline wins here: task arithmetic, tuned anew, is at or above every sparse mask on two, six "
            "and eight tasks in nearly every seed.",
            "The seconds are those of a machine that had other work to do; the processor time is the reproduction's.",
        ),
        used="""
steps:
  merged:
    do: merge
    method: breadcrumbs
    models: [alone]
    parameters: {keep: 0.15, drop_top: 0.006, lambda: 0.3}
""",
        scales={
            "small": Scale(
                "Pretrains a residual network of some thirty thousand parameters, tunes it to eight tasks and merges "
                "them once per arm and number of tasks, on one CPU core; a seed takes about a minute.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "n=2, n=4, n=6 and n=8: mean accuracy of the merged tasks over that of their own fine-tuned "
                    "models, with the coefficient tuned on the first two tasks; tuned: with one tuned for that many.",
                    "alpha is that coefficient; own is the mean accuracy of the fine-tuned models.",
                ),
                seeds=3,
            ),
        },
    ),
)
