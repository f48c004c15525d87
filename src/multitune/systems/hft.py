"""System 21, HFT: a random half of every layer trains in each round, the other half keeps what the model knew.

The small reproduction teaches a decoder that knows three skills a fourth one, and compares what is left of the three
at the same accuracy on the fourth.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Metrics
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

    from multitune.systems.skill_language import Skill

TUNING = {"learning_rate": 3e-4, "rows": 64, "accuracy": 0.80, "every": 5, "most": 600, "held_out": 400}
DRAWS = 3
"""Orders of the new skill's rows for every base; with half fine-tuning each has a selection of its own."""


@lru_cache(maxsize=1)
def pretrained(seed: int) -> LlamaForCausalLM:
    """Return a decoder that knows facts, copying and reversing; the arms of a seed share it and must copy it."""
    from multitune.systems.skill_language import decoder, pretrain

    model = decoder(seed)
    pretrain(model, old_skills(seed), steps=700, learning_rate=3e-3, rows=128, seed=seed)
    return model


def old_skills(seed: int) -> list[Skill]:
    """Return what the base knows."""
    from multitune.systems import skill_language as language

    return [language.facts(seed, 0), language.copy(1), language.reverse(2)]


def new_skills() -> list[Skill]:
    """Return what is taught, one a round."""
    from multitune.systems import skill_language as language

    return [language.add_seven(3), language.triple_reversed(4), language.rotate_and_add(5)]


def tune(model: LlamaForCausalLM, skill: Skill, settings: Mapping[str, Any], seed: int) -> tuple[int, float]:
    """Train what of the model requires gradients on one skill until it is learned; return steps and accuracy.

    AdamW at a constant rate; the accuracy is looked at every few steps, on prompts of its own, and ends the training
    where it first reaches the threshold, or after the most steps allowed.
    """
    import torch

    from multitune.mixing.shuffling import seed_of
    from multitune.systems.skill_language import exact_match, sample

    generator = torch.Generator().manual_seed(seed_of("rows", seed) % 2**63)
    prompts = held_out(skill, settings["held_out"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings["learning_rate"])
    for step in range(1, settings["most"] + 1):
        input_ids, labels = sample([skill], settings["rows"], generator)
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        if step % settings["every"] == 0 and exact_match(model, skill, prompts) >= settings["accuracy"]:
            break
    return step, exact_match(model, skill, prompts)


def held_out(skill: Skill, rows: int) -> Tensor:
    """Return prompts on which a skill is measured: all facts, else some symbols drawn once."""
    import torch

    return skill.prompts if skill.prompts is not None else skill.draw(rows, torch.Generator().manual_seed(1))


def run_one_round(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Teach the first new skill as one arm says, with every draw, and measure what is left of the old ones.

    Returns:
        Means over the draws. ``accuracy``: on the new skill; ``retention``: mean accuracy on the old skills;
        ``retention/<skill>``: of each; ``retention_low`` and ``retention_high``: of the worst and best draw; ``steps``;
        ``trained``: share of the parameters that trained; ``before``: the base's lowest accuracy on an old skill.
    """
    draws = [_one_draw(settings, seed, draw) for draw in range(settings["draws"])]
    metrics = {name: math.fsum(one[name] for one in draws) / len(draws) for name in draws[0]}
    retained = [one["retention"] for one in draws]
    return {**metrics, "retention_low": min(retained), "retention_high": max(retained)}


def _one_draw(settings: Mapping[str, Any], seed: int, draw: int) -> dict[str, float]:
    base = pretrained(seed)
    model = copy.deepcopy(base)
    trained = _freeze(model, settings, seed=10 * seed + draw, round=1)
    skill = new_skills()[0]
    steps, accuracy = tune(model, skill, settings, seed=10 * seed + draw)
    if settings.get("reset"):
        accuracy = _reset(model, base, skill, settings, seed=10 * seed + draw)
    skills, rows = old_skills(seed), settings["held_out"]
    before = min(retention(base, skills, rows).values())
    kept = retention(model, skills, rows)
    return {"accuracy": accuracy, **kept, "before": before, "steps": float(steps), "trained": trained}


def _freeze(model: LlamaForCausalLM, settings: Mapping[str, Any], *, seed: int, round: int) -> float:
    """Freeze the half that an arm's settings name, nothing for full fine-tuning; return the share that trains."""
    from multitune.adaptation.half import freeze, half_round
    from multitune.adaptation.half_config import HalfConfig

    model.requires_grad_(True)
    if settings.get("granularity") is None:
        return 1.0
    half = half_round(model, HalfConfig(granularity=settings["granularity"]), seed=seed, round=round)
    freeze(model, half)
    return half.trainable / half.parameters


def _reset(
    model: LlamaForCausalLM, base: LlamaForCausalLM, skill: Skill, settings: Mapping[str, Any], seed: int
) -> float:
    """Give half of the tuned blocks their old weights back, in place; return what is left of the new skill."""
    from multitune.adaptation.half_config import HalfConfig
    from multitune.systems.skill_language import exact_match
    from multitune.weights.half_reset import half_reset

    model.load_state_dict(half_reset(base.state_dict(), model.state_dict(), HalfConfig(), seed=seed))
    return exact_match(model, skill, held_out(skill, settings["held_out"]))


def retention(model: LlamaForCausalLM, skills: Sequence[Skill], rows: int) -> dict[str, float]:
    """Return the accuracy on every skill and their mean."""
    from multitune.systems.skill_language import exact_match

    accuracy = {f"retention/{skill.name}": exact_match(model, skill, held_out(skill, rows)) for skill in skills}
    return {"retention": math.fsum(accuracy.values()) / len(accuracy), **accuracy}


def run_three_rounds(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Teach the three new skills one after another, each round with a half of its own.

    Returns:
        ``overall``: OP_3 over the new skills; ``backward``: BWT_3 with divisor t - 1; ``backward_by_t``: with divisor
        t; ``retention/<skill>`` of the base's skills at the end, their mean, and the ``steps`` of all rounds.
    """
    from multitune.scoring.continual import backward_transfer, overall_performance
    from multitune.systems.skill_language import exact_match

    model, skills = copy.deepcopy(pretrained(seed)), new_skills()
    steps, scores = 0, []
    for round, skill in enumerate(skills, start=1):
        _freeze(model, settings, seed=seed, round=round)
        steps += tune(model, skill, settings, seed=10 * seed + round)[0]
        scores.append([exact_match(model, one, held_out(one, settings["held_out"])) for one in skills])
    return {
        "overall": overall_performance(scores),
        "backward": backward_transfer(scores, "t-1"),
        "backward_by_t": backward_transfer(scores, "t"),
        **retention(model, old_skills(seed), settings["held_out"]),
        "steps": float(steps),
    }


RUNS: Mapping[str, Callable[[Mapping[str, Any], int, Path], Metrics]] = {
    "one round": run_one_round,
    "three rounds": run_three_rounds,
}


def run(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Run one arm with one base."""
    return RUNS[settings["runs"]](settings, seed, folder)


def _arm(name: str, told: str, runs: str = "one round", **settings: Any) -> Arm:
    return Arm(name, told, {"runs": runs, **TUNING, "draws": DRAWS, **settings})


ARMS = (
    _arm("full", "all parameters train"),
    _arm("half", "half of every category of every layer", granularity="category"),
    _arm("half-layer", "half of the layers, whole", granularity="layer"),
    _arm("half-model", "half of the matrices, anywhere", granularity="model"),
    _arm("half-reset", "all parameters train; then half of the blocks get their old weights back", reset=True),
    _arm("full-rounds", "three skills one after another, all parameters", "three rounds"),
    _arm("half-rounds", "three skills one after another, another half each", "three rounds", granularity="category"),
)

CLAIMS = (
    Claim(
        "1",
        "At an accuracy of 0.80 on the new skill, half fine-tuning has kept more of the old skills than full "
        "fine-tuning has, by 0.015 or more.",
        "mean accuracy on the three old skills, half minus full, over three selections",
        lambda arms: arms["half"]["retention"] - arms["full"]["retention"],
        0.015,
    ),
)

SYSTEM = System(
    21,
    "HFT",
    "HFT: Half Fine-Tuning for Large Language Models",
    "arXiv 2404.18466, ACL 2025",
    "Training a random half of every layer's blocks in each round forgets less than training all of them.",
    "adaptation",
    Account(
        published=(
            "Tuned on the TULU V2 mixture, Llama-2-7B reaches 42.9 on average over six benchmarks with half of its "
            "blocks frozen, against 41.0 in full, and keeps 18.1 of 22.9 points on three sets of factual questions, "
            "against 14.7.",
            "In the eight rounds of TRACE overall performance rises from 45.7 to 51.3 and backward transfer from -10.2 "
            "to -5.6 %.",
            "Halving by category is better than by layer, and by layer better than anywhere in the model; a fraction "
            "of 0.5 is best, 0.4 to 0.6 are alike.",
            "Training takes about 30 % less time.",
        ),
        faithful=(
            "The selection is the paper's: 2 of the 4 attention matrices of every layer, 2 of the 3 feed-forward "
            "matrices frozen in a random half of the layers and 1 in the others, 1 of the 2 norms; embeddings, head "
            "and final norm always train. On the shapes of Llama-2-7B that is 3,500,281,856 of 6,738,415,616.",
            "What is frozen requires no gradient before the optimiser exists: it has no gradient, no optimiser state "
            "and no weight decay.",
            "Every round draws a half of its own and begins with a new optimiser; the weights go on.",
        ),
        deviates=(
            "A Llama of four layers, 64 wide, is pretrained here on 400 facts, copying and reversing, and taught to "
            "add 7 to four symbols, in place of Llama-2 on TULU V2.",
            "What is kept is compared at equal accuracy on the new skill, 0.80, and not at equal steps: at equal steps "
            "half fine-tuning has learned less, and keeps more for that reason alone.",
            "Every base is tuned three times, with other rows, and with half fine-tuning another half each time.",
            "AdamW at a constant 3e-4 takes the place of a schedule, for all arms alike.",
            "Granularities, the reset of half of a tuned model, and three rounds are reported and not judged.",
        ),
        found=(
            "At this size the bases decide more than the method: half fine-tuning kept more in some and less in "
            "others, and on average as much as full fine-tuning. It took more steps to the same accuracy in every "
            "base, as half of the weights have to do the work of all.",
            "Which half is drawn matters more than how halves are drawn: the best and the worst of three selections of "
            "one base lie further apart than full and half fine-tuning do. Halving by layer varies most.",
            "Full fine-tuning overshoots the threshold more, as it gains more between two looks at its accuracy.",
            "Resetting half of a tuned model brings back most of the old skills and loses the new one altogether: four "
            "layers have no room in which half of the change would still do the work.",
            "Three rounds wipe out the first two skills and the base's own under either method. Where half fine-tuning "
            "shows a milder backward transfer, in one base, a round had ended at 600 steps with its skill unlearned, "
            "and there was less to forget.",
        ),
        used="""
steps:
  joint:
    do: train
    adapt: {method: half, fraction: 0.5, granularity: category}
""",
        scales={
            "small": Scale(
                "Pretrains a decoder of about 170,000 parameters once per seed and tunes it in 17 short trainings, on "
                "one CPU core; a seed takes two minutes.",
                ARMS,
                CLAIMS,
                run,
                (
                    "retention is the mean accuracy on the base's three skills (facts, copy, reverse) after tuning; "
                    "before is the lowest of the three before it.",
                    "accuracy is that on the new skill where training stopped, steps the optimiser steps it took.",
                    "overall is OP after three rounds; backward is BWT divided by the two earlier tasks, backward_by_t "
                    "by the three rounds.",
                ),
            ),
        },
    ),
)
