"""System 19, PCP: pre-training goes on with texts that carry the prompt and a label, before prompts are fine-tuned.

The small reproduction gives a small masked language model three labelled texts per class and a thousand without labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multitune.systems.claims import Claim, Metrics
from multitune.systems.system import Account, Arm, Scale, System

SIZES = {"general": 4000, "labelled": 3, "unlabelled": 1000, "test": 1000}
LEARNING = {
    "general_steps": 800, "general_rate": 1e-2, "few_steps": 60, "few_rate": 5e-4, "steps": 500, "rate": 1e-3,
    "batch_size": 64,
}  # fmt: skip


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Go from a base to a fine-tuned model in one of the ways; every share is of a thousand test rows.

    Returns:
        accuracies: ``few_shot`` without more pre-training, ``labels`` of what the unlabelled texts were called,
        ``zero_shot`` behind the pre-training alone, ``fine_tuned`` at the end.
    """
    import numpy as np

    from multitune.models.config import ModelConfig
    from multitune.prompting.config import FineTuning, Pretraining
    from multitune.prompting.pipeline import Data, Prompt, pcp_pipeline
    from multitune.prompting.shipped import shipped_prompt
    from multitune.systems.sentiment_world import few, labelled_rows, make_base

    def pretraining(steps: str, rate: str) -> Pretraining:
        return Pretraining(
            steps=settings[steps],
            learning_rate=settings[rate],
            batch_size=settings["batch_size"],
            accumulation=1,
            evaluate_every=settings[steps],
            save_every=settings[steps],
        )

    general = pretraining("general_steps", "general_rate")
    make_base(folder / "base", lines=settings["general"], pretraining=general, seed=seed, work=folder / "general")
    generator = np.random.default_rng(10_000 + seed)
    train = few(settings["labelled"], generator)
    unlabelled, gold = labelled_rows(settings["unlabelled"], generator)
    test = labelled_rows(settings["test"], generator)
    facts = pcp_pipeline(
        ModelConfig(name=str(folder / "base")),
        Prompt(*shipped_prompt("sst-2", ("a",))),
        Data(train, ([], []), unlabelled, gold if settings["gold"] else None, test),
        FineTuning(steps=settings["few_steps"], learning_rates=(settings["few_rate"],)),
        pretraining("steps", "rate"),
        folder / "stages",
        seed=seed,
        way=settings["way"],
    )
    metrics = {
        "few_shot": facts["few_shot"]["test"],
        "zero_shot": facts["pretrained"]["zero_shot"],
        "fine_tuned": facts["fine_tuned"]["test"],
    }
    if settings["way"] == "pcp":
        metrics["labels"] = _agreement(folder, gold)
    return metrics


def _agreement(folder: Path, gold: list[float]) -> float:
    found = json.loads((folder / "stages" / "2-labels" / "labels.json").read_text())
    return math.fsum(one == other for one, other in zip(found, gold, strict=True)) / len(gold)


def _arm(name: str, told: str, **settings: Any) -> Arm:
    return Arm(name, told, {**SIZES, **LEARNING, "gold": False, **settings})


ARMS = (
    _arm("TAPT", "pre-training goes on with the raw texts", way="tapt"),
    _arm("PCP", "with the filled prompt and the label that the fine-tuned base gives", way="pcp"),
    _arm("PCP, gold labels", "with the filled prompt and the true label", way="pcp", gold=True),
)


CLAIMS = (
    Claim(
        "1a",
        "With PCP before it, prompt-based fine-tuning is better by 0.03 or more.",
        "accuracy with PCP minus that without",
        lambda arms: arms["PCP"]["fine_tuned"] - arms["PCP"]["few_shot"],
        0.03,
    ),
    Claim(
        "1b",
        "It is better than with TAPT before it by 0.01 or more.",
        "accuracy with PCP minus that with TAPT",
        lambda arms: arms["PCP"]["fine_tuned"] - arms["TAPT"]["fine_tuned"],
        0.01,
    ),
    Claim(
        "2a",
        "Without any fine-tuning behind it, PCP answers as well as its pseudo-labels are, within 0.06.",
        "0.06 minus the distance between the accuracy right behind PCP and that of the pseudo-labels",
        lambda arms: 0.06 - abs(arms["PCP"]["zero_shot"] - arms["PCP"]["labels"]),
        0.0,
    ),
    Claim(
        "2b",
        "It then answers better than behind TAPT by 0.05 or more.",
        "accuracy right behind PCP minus that behind TAPT",
        lambda arms: arms["PCP"]["zero_shot"] - arms["TAPT"]["zero_shot"],
        0.05,
    ),
    Claim(
        "3",
        "Gold labels are no worse than pseudo-labels by more than 0.01.",
        "accuracy right behind PCP with gold labels minus that with pseudo-labels",
        lambda arms: arms["PCP, gold labels"]["zero_shot"] - arms["PCP"]["zero_shot"],
        -0.01,
    ),
)

SYSTEM = System(
    19,
    "PCP",
    "Don't Stop Pretraining? Make Prompt-based Fine-tuning Powerful Learner",
    "arXiv 2305.01711, NeurIPS 2023",
    "Continued pre-training on texts that carry the prompt makes prompt-based fine-tuning better.",
    "prompting",
    Account(
        published=(
            "On 21 tasks with RoBERTa, PCP makes prompt-based fine-tuning better, with hard and soft prompts, with few "
            "labels and with all, by up to 20.1 points; hundreds of texts without labels are enough.",
            "Going on with pre-training on raw texts (TAPT) has no consistent gain, and harms tasks on pairs of texts.",
            "PCP is ahead of four methods of self-training.",
        ),
        faithful=(
            "The pseudo-labels come from a model that was fine-tuned on the few labels, every text gets one, and the "
            "pre-training begins at the original checkpoint, never at the fine-tuned one.",
            "A line of the corpus is the filled template with the label word; template and word are masked like all "
            "other tokens, 15 % anew every time.",
            "The same prompt asks in both fine-tunings; no test text is pre-trained on.",
        ),
        deviates=(
            "A BERT of two layers and width 32 without dropout, trained from nothing on made-up texts, in place of "
            "RoBERTa: no published number is tested at this size.",
            "What the card leaves open: batches of 64 lines, and template words in a fifth of the general texts, set "
            "before any run; and the rate of the general pre-training. A first run at 1e-3 had bases that knew next to "
            "nothing (few-shot 0.74, 0.68, 0.50, 0.50, 0.51) and no claim reproduced: 2b not, the others "
            "inconclusive. Since then the rate is 1e-2, which has the lowest loss on held-out general texts of 1e-3, "
            "3e-3 and 1e-2 with a seed that is not among these; no other number was changed. Claim 3 is reproduced in "
            "this second run alone.",
            "No development rows choose a step or a rate: the last step of one rate is kept.",
            "The authors' four rivals of self-training, and their lower bound with wrong labels, are not built.",
        ),
        found=(
            "With true labels the pre-training alone answers 0.84 of the texts (mean over seeds); with pseudo-labels, "
            "of which 0.64 are right, 0.59. The two arms differ in the labels alone.",
            "With pseudo-labels the gain is not shown: fine-tuned behind PCP 0.69, behind TAPT 0.71, on the base 0.65.",
            "The base is weaker than the card's reference: fine-tuned on six texts 0.65 against 0.80 there (three "
            "seeds), and right pseudo-labels 0.64 against 0.80. Whether that explains the difference is not tested.",
        ),
        used="""
model: FacebookAI/roberta-large
prompt: {name: sst-2, fields: [text]}
data: {train: train.jsonl, validation: validation.jsonl, unlabelled: texts.jsonl, test: test.jsonl, label: label}
pretraining: {epochs: 100}
""",
        scales={
            "small": Scale(
                "Pre-trains a masked language model of about 30,000 weights on 4000 made-up texts, 800 steps; then has "
                "three labelled texts per class, 1000 without labels and 1000 to test on. One CPU core, about two "
                "minutes a seed.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "few_shot: share of right answers of the base, fine-tuned on six texts by its prompt.",
                    "labels: share of the unlabelled texts whose label is right.",
                    "zero_shot: share of right answers right behind the further pre-training, no label seen.",
                    "fine_tuned: after fine-tuning on the six texts behind it.",
                ),
                seeds=5,
            ),
        },
    ),
)
