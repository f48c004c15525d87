"""System 14, MHR: an inventory of adapters that every task mixes, head by head.

Two small worlds: a linear one whose tasks really are mixtures of skills per head (one layer, no transformer), and
string tasks for a small T5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

SIZES = {"tasks": 48, "rows": 24, "new_tasks": 16, "few": 16, "validation": 200}
LEARNING = {"steps": 400, "few_steps": 150, "rate": 1e-2, "routing_rate": 1e-1}
STRINGS = {"base_steps": 300, "base_rate": 3e-3, "rates": (3e-3, 1e-2, 3e-2), "rows": 4, "steps": 200}


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Learn the tasks of one of the two worlds."""
    if settings["world"] == "strings":
        from multitune.systems.routed_strings import compare

        return compare(settings, seed)
    return run_linear(settings, seed)


def run_linear(settings: Mapping[str, Any], seed: int) -> Metrics:
    """Learn the tasks of a linear world together, then each new task from its few rows in three ways.

    Returns:
        mean squared errors on rows that were not learned from: ``untouched`` and ``joint`` of the tasks learned
        together, before and after; ``full``, ``routing`` and ``average`` of the new tasks, mean over them.
    """
    from multitune.systems.routing_world import Rows, error, fit, for_one_task, make_world, routed_layer

    world = make_world(seed, **{name: settings[name] for name in SIZES})
    rates = {"rate": settings["rate"], "routing_rate": settings["routing_rate"]}
    shape = {name: settings[name] for name in ("skills", "heads", "rank")}
    layer = routed_layer(world.weight, settings["tasks"], **shape, seed=seed)
    metrics = {"untouched": error(layer, world.validation)}
    fit(layer, world.train, steps=settings["steps"], **rates)
    metrics["joint"] = error(layer, world.validation)
    for way in ("full", "routing", "average"):
        errors = []
        for task in range(settings["new_tasks"]):
            own = slice(task, task + 1)
            new = for_one_task(layer, 1000 * seed + task, average=way == "average")
            few = Rows(world.few.inputs[own], world.few.outputs[own])
            fit(new, few, steps=settings["few_steps"], **rates, modules=way != "routing")
            errors.append(error(new, Rows(world.few_validation.inputs[own], world.few_validation.outputs[own])))
        metrics[way] = math.fsum(errors) / len(errors)
    return metrics


def _arm(name: str, told: str, *, skills: int, heads: int, rank: int = 2) -> Arm:
    return Arm(name, told, {"world": "linear", **SIZES, **LEARNING, "skills": skills, "heads": heads, "rank": rank})


def _t5_arm(name: str, told: str, *, skills: int, heads: int, rank: int) -> Arm:
    shape = {"skills": skills, "heads": heads, "rank": rank, "routing_speed": 10.0}
    return Arm(name, told, {"world": "strings", **STRINGS, **shape})


ARMS = (
    _arm("LoRA", "one module for all tasks, rank 2", skills=1, heads=1),
    _arm("LoRA, rank 8", "the same with as many numbers as the inventories have", skills=1, heads=1, rank=8),
    _arm("Poly", "four modules of rank 2, mixed whole", skills=4, heads=1),
    _arm("MHR", "four modules of rank 2, mixed in eight heads", skills=4, heads=8),
    _t5_arm("T5, LoRA", "one module for all string tasks, rank 4", skills=1, heads=1, rank=4),
    _t5_arm("T5, LoRA, rank 16", "the same with as many numbers as MHR has", skills=1, heads=1, rank=16),
    _t5_arm("T5, MHR", "four modules of rank 4, mixed in eight heads", skills=4, heads=8, rank=4),
)

CLAIMS = (
    Claim(
        "1",
        "On rows of the training tasks, the error of MHR is less than 0.3 of Poly's.",
        "0.3 minus MHR's error as a share of Poly's, on other rows of the training tasks",
        lambda arms: 0.3 - arms["MHR"]["joint"] / arms["Poly"]["joint"],
        0.0,
        Count(3, 3),
    ),
    Claim(
        "2",
        "On new tasks, tuning the routing alone (MHR-z) leaves less than 0.3 of the error that it leaves of Poly.",
        "0.3 minus the error of MHR-z as a share of Poly-z's, mean over new tasks",
        lambda arms: 0.3 - arms["MHR"]["routing"] / arms["Poly"]["routing"],
        0.0,
        Count(3, 3),
    ),
    Claim(
        "3",
        "On new tasks, tuning modules and routing leaves less than half of the error of a tuned shared LoRA.",
        "0.5 minus MHR's error as a share of LoRA's, mean over new tasks",
        lambda arms: 0.5 - arms["MHR"]["full"] / arms["LoRA"]["full"],
        0.0,
        Count(3, 3),
    ),
    Claim(
        "4",
        "In a small T5 on sixteen string tasks, MHR ends at a lower loss over all tasks than a shared LoRA of equal "
        "rank.",
        "LoRA's loss per token minus MHR's, on other rows, each at its best learning rate",
        lambda arms: arms["T5, LoRA"]["mixture_loss"] - arms["T5, MHR"]["mixture_loss"],
        0.0,
        Count(3, 3),
    ),
    Claim(
        "5",
        "There the gradients of the tasks on the modules are better aligned under MHR.",
        "mean cosine over pairs of tasks under MHR minus that under LoRA, after training",
        lambda arms: arms["T5, MHR"]["alignment"] - arms["T5, LoRA"]["alignment"],
        0.0,
        Count(3, 3),
    ),
)

SYSTEM = System(
    14,
    "MHR",
    "Multi-Head Adapter Routing for Cross-Task Generalization",
    "arXiv 2211.03831, NeurIPS 2023",
    "A shared inventory of adapters with learned routing adapts to a new task by very few numbers.",
    "adaptation",
    Account(
        published=(
            "Pre-trained on many tasks and adapted to new ones from a few examples, MHR is ahead of Poly, and Poly of "
            "a shared LoRA, at one budget of adapter numbers.",
            "MHR-z, which tunes the routing alone, competes with tuning whole adapters.",
            "MHR-mu, which tunes the average of the modules, is about as good as MHR: the gain comes from the "
            "pre-training on many tasks.",
        ),
        faithful=(
            "Factors are averaged, not their products; every head has its own mixture over the skills, normalised "
            "sigmoids of logits that start almost equal; A, B and the logits start as the authors' do.",
            "The logits learn ten times as fast as the modules, without weight decay.",
            "Few-shot adaptation draws a fresh row of logits for every new task.",
        ),
        deviates=(
            "A linear layer of width 32 whose tasks are built as mixtures of four skills in eight heads, in place of "
            "T5-XL on the T0 mixture: what is shown is that routing per head finds such a structure and one per module "
            "does not.",
            "What the tasks add is scaled to a mean square of 3.15, the error that the card measured of an untouched "
            "layer; the card leaves the scale open.",
            "The T5 (width 64, two blocks and two) is trained from nothing on four of the sixteen string tasks and "
            "frozen, in place of T5-XL; every arm has its best of three learning rates by validation rows. Gradients "
            "are compared on the modules at the end of training.",
            "No run at full scale.",
        ),
        found=(
            "MHR-mu is no better here than a shared LoRA, as it must be in a world that needs routing: its published "
            "claim is not tested by it.",
            "In the T5 gradients of different tasks are almost orthogonal whatever adapts it: MHR is ahead in every "
            "seed, but by 0.011 of a cosine, and the interval of that mean holds zero.",
        ),
        used="""
steps:
  joint:
    adapt: {method: mhr, r: 1, n_skills: 8, n_splits: 64}
""",
        scales={
            "small": Scale(
                "48 tasks of 24 rows are learned together, then 16 new tasks of 16 rows each in three ways, by one "
                "layer of width 32; and sixteen string tasks together by adapters of a small T5, in 200 steps of 64 "
                "rows. On one CPU core a seed takes about three minutes.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "untouched, joint: mean squared error on other rows of the training tasks, before and after "
                    "learning them together.",
                    "full, routing, average: on other rows of the new tasks, after tuning modules and routing, the "
                    "routing alone (z), or the average of the modules (mu).",
                    "start_loss, mixture_loss: of the T5, per token of other rows of all string tasks, before and "
                    "after.",
                    "alignment: mean cosine between the gradients of two string tasks on the modules, -1 to 1.",
                ),
                seeds=3,
            ),
        },
    ),
)
