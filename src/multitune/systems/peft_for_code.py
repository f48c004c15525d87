"""System 34, PEFT for code: which way of adapting a model writes the most calls of a library that it does not know.

The small reproduction teaches a decoder that knows one library another one, by every method of the study, each at the
learning rate that is best on validation rows, and asks the untuned one behind demonstrations.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.tasks.task import Split, Task

BEFORE = {"rows": 4000, "steps": 400, "batch_size": 64, "learning_rate": 3e-3}
TUNING = {"steps": 400, "batch_size": 16}
PROJECTIONS = ["q_proj", "k_proj", "v_proj"]
FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]
LORA = {"method": "lora", "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}


@lru_cache(maxsize=1)
def pretrained(seed: int, rows: int, steps: int, batch_size: int, learning_rate: float) -> Backbone:
    """Return a decoder that knows the old library; the arms of a seed share it and must copy it."""
    from multitune.systems.small_libraries import ROWS, library_task, small_decoder

    backbone = small_decoder(seed)
    task = library_task("old", seed, splits={**ROWS, "train": (sum(ROWS["test"]), rows)})
    with tempfile.TemporaryDirectory() as folder:
        _train(backbone, [task], learning_rate, seed, Path(folder), steps=steps, batch=batch_size)
    return backbone


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Tune the decoder as one arm says, or leave it, and ask it for calls of the new library's test rows.

    Returns:
        ``em``, ``ast_match``, ``codebleu`` of the test rows, ``em/<library>`` of each where there are two, ``old`` (EM
        on the old library), ``trained`` numbers, and the chosen ``rate``.
    """
    from multitune.systems.small_libraries import library_task

    base = pretrained(seed, **settings["before"])
    libraries = settings["libraries"]
    tasks = [library_task(name, seed, named=settings["named"]) for name in libraries]
    model, rate, trained = base, 0.0, 0
    if settings["adapt"] is not None:
        model, rate, trained = _tuned(base, tasks, settings, seed, folder)
    scores = [_scores(model, task, "test", settings["mode"], seed, folder) for task in tasks]
    metrics = {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}
    each = {f"em/{name}": one["em"] for name, one in zip(libraries, scores, strict=True)} if len(tasks) > 1 else {}
    old = _scores(model, library_task("old", seed), "test", "zero-shot", seed, folder)["em"]
    return {**metrics, **each, "old": old, "trained": float(trained), "rate": rate}


def _tuned(
    base: Backbone, tasks: Sequence[Task], settings: Mapping[str, Any], seed: int, folder: Path
) -> tuple[Backbone, float, int]:
    """Return the backbone tuned at the rate of the highest EM on validation rows, that rate, and what trained.

    Of rates that are equally good it is the first.
    """
    import dataclasses

    from multitune.adaptation.adapting import adapt
    from multitune.adaptation.config import AdaptationConfig

    tried = []
    for rate in settings["rates"]:
        copied = dataclasses.replace(base, model=copy.deepcopy(base.model))
        backbone = adapt(copied, AdaptationConfig(**settings["adapt"]), steps=settings["steps"], seed=seed)
        trained = sum(one.numel() for one in backbone.model.parameters() if one.requires_grad)
        here = folder / f"rate-{rate:g}"
        _train(backbone, tasks, rate, seed, here, steps=settings["steps"], batch=settings["batch_size"])
        scores = [_scores(backbone, task, "validation", "zero-shot", seed, here)["em"] for task in tasks]
        tried.append((sum(scores) / len(scores), backbone, rate, trained))
    _, backbone, rate, trained = max(tried, key=lambda one: one[0])
    return backbone, rate, trained


def _train(
    backbone: Backbone, tasks: Sequence[Task], rate: float, seed: int, folder: Path, *, steps: int, batch: int
) -> None:
    from multitune.systems.arms import train_on

    training = {
        "steps": steps, "batch_size": batch, "micro_batch_size": batch, "max_length": 32,
        "pack": "never",  # so that a batch is a number of examples for every method
        "learning_rate": rate, "schedule": "linear", "warmup": 0.05, "logging_steps": 200, "save_steps": 100_000,
    }  # fmt: skip
    train_on(backbone, list(tasks), training, seed, folder)


def _scores(backbone: Backbone, task: Task, split: Split, mode: str, seed: int, folder: Path) -> dict[str, float]:
    """Return EM@1, equal trees and CodeBLEU of the greedy answers to a split."""
    from multitune.scoring.code.evaluation import Decoding, demonstrations, measured, mode_of, written
    from multitune.tasks.prompting import prompted_examples

    rows = list(prompted_examples(task, split, folder))
    store = list(prompted_examples(task, "train", folder))
    decoding = Decoding()
    answers = written(backbone, task, rows, demonstrations(rows, store, mode_of(mode, seed)), decoding)
    found = measured(answers, decoding)
    return {"em": found["em@1"]["value"], **{name: found[name]["value"] for name in ("ast_match", "codebleu")}}


def _asked(name: str, told: str, mode: str) -> Arm:
    return Arm(name, told, {"adapt": None, "mode": mode, "libraries": ["north"], "named": False, "before": BEFORE})


def _tuning(
    name: str, told: str, adapt: Mapping[str, Any], rates: Sequence[float], libraries: Sequence[str] = ("north",),
    named: bool = False,
) -> Arm:  # fmt: skip
    settings = {
        "adapt": dict(adapt), "rates": list(rates), "mode": "zero-shot", "libraries": list(libraries), "named": named,
        "before": BEFORE, **TUNING,
    }  # fmt: skip
    return Arm(name, told, settings)


IA3 = {"method": "ia3", "target_modules": [*PROJECTIONS, *FEED_FORWARD], "feedforward_modules": FEED_FORWARD}

ARMS = (
    _asked("zero-shot", "the untuned model, asked alone", "zero-shot"),
    _asked("ICL(3)", "the untuned model behind three random training examples", "icl:3"),
    _asked("RAG(3)", "the untuned model behind the three nearest training examples", "rag:3"),
    _tuning("full", "all weights", {"method": "full"}, (1e-3, 3e-3)),
    _tuning("LoRA", "rank 16 on all linear layers", LORA, (1e-3, 3e-3)),
    _tuning("IA3", "a factor per output of q, k, v and per input of the feed-forward", IA3, (3e-2, 1e-1)),
    _tuning(
        "prefix tuning", "10 virtual tokens in every layer", {"method": "prefix_tuning", "num_virtual_tokens": 10},
        (3e-2, 3e-1),
    ),
    _tuning(
        "prompt tuning", "20 virtual tokens before the text", {"method": "prompt_tuning", "num_virtual_tokens": 20},
        (3e-2, 3e-1),
    ),
    _tuning("LoRA, north", "for one of two libraries, asked for by name", LORA, (3e-3,), ("north",), True),
    _tuning("LoRA, south", "for the other", LORA, (3e-3,), ("south",), True),
    _tuning("LoRA, both", "one adapter for both", LORA, (3e-3,), ("north", "south"), True),
)  # fmt: skip


def _prompts(arms: Mapping[str, Metrics]) -> float:
    """The better of the two methods that learn a prompt."""
    return max(arms["prefix tuning"]["em"], arms["prompt tuning"]["em"])


def _lost_by_joining(arms: Mapping[str, Metrics]) -> float:
    return max(arms[f"LoRA, {name}"]["em"] - arms["LoRA, both"][f"em/{name}"] for name in ("north", "south"))


ALL = Count(3, 3)
CLAIMS = (
    Claim("1a", "LoRA writes at least 95 % of the calls exactly.", "EM@1 of LoRA minus 0.95",
          lambda arms: arms["LoRA"]["em"] - 0.95, 0.0, ALL),
    Claim("1b", "LoRA is within 0.03 of training all weights.", "0.03 minus what EM@1 of full is ahead of LoRA's",
          lambda arms: 0.03 - (arms["full"]["em"] - arms["LoRA"]["em"]), 0.0, ALL),
    Claim("2", "IA3 lies between LoRA and the methods that learn a prompt.",
          "the smaller of EM@1 of LoRA minus IA3's, and IA3's minus the better prompt's",
          lambda arms: min(arms["LoRA"]["em"] - arms["IA3"]["em"], arms["IA3"]["em"] - _prompts(arms)), 0.0, ALL),
    Claim("3", "LoRA is at least 0.5 ahead of prefix and prompt tuning.", "EM@1 of LoRA minus the better prompt's",
          lambda arms: arms["LoRA"]["em"] - _prompts(arms), 0.5, ALL),
    Claim("4", "LoRA is at least 0.5 ahead of three random demonstrations.", "EM@1 of LoRA minus that of ICL(3)",
          lambda arms: arms["LoRA"]["em"] - arms["ICL(3)"]["em"], 0.5, ALL),
    Claim("5", "One adapter for two libraries loses at most 0.05 on either against an adapter for each.",
          "0.05 minus the larger loss of EM@1 by joining", lambda arms: 0.05 - _lost_by_joining(arms), 0.0, ALL),
)  # fmt: skip

SYSTEM = System(
    34,
    "PEFT for code",
    "Exploring Parameter-Efficient Fine-Tuning Techniques for Code Generation with Large Language Models",
    "arXiv 2308.10462, TOSEM 2025",
    "Adapters on large code models beat fully tuned small ones, and examples in the context, at less memory.",
    "adaptation",
    Account(
        published=(
            "Large models tuned with LoRA, about 1 % of the parameters, beat fully tuned models of at most a billion "
            "parameters by 39.8 to 72.3 % in EM@k on CoNaLa and CodeAlpacaPy; LoRA is the best of LoRA, IA3, prompt "
            "and prefix tuning.",
            "Tuning beats in-context learning by 22.8 to 150 %, and prompts with retrieved examples too.",
            "One adapter for both data sets is as good as one for each.",
            "QLoRA in 8 and 4 bits halves the memory or better at equal or better accuracy.",
        ),
        faithful=(
            "The prompt format, the loss on code, fence and end token alone, and the four methods: LoRA of rank 16 on "
            "all linear layers, IA3 on q, k, v and the feed-forward inputs, 10 virtual tokens of prefix and 20 of "
            "prompt.",
            "Demonstrations are training examples in the same format, the same random ones for all queries, or the "
            "nearest ones.",
            "EM@1 of stripped text, with equal syntax trees and CodeBLEU beside it.",
        ),
        deviates=(
            "A Llama of 93,760 numbers, taught one library of twelve functions, learns a second one with other names "
            "and another form of call, from 200 examples, in place of code models on CoNaLa: all methods stand on one "
            "model, so that small models tuned whole are not compared with large ones.",
            "400 steps of AdamW with a linear schedule for all methods; each has its learning rate chosen of two "
            "by EM on 100 validation rows, where the study gives one rate to each. The three adapters that compare "
            "joint with separate training share one rate.",
            "Prompt tuning starts from random vectors: there is no text in this vocabulary that describes the task.",
            "Greedy answers instead of ten beams; neither QLoRA nor execution of tests is part of it.",
            "The nearest examples are those of TF-IDF, not of a sentence encoder.",
        ),
        found=(
            "A decoder that was taught single calls has never seen an example before a query: that demonstrations do "
            "nothing for it says little of models that learn in context, and claim 4 holds for that reason.",
            "The new calls hold a sign, the dot, that the model never wrote before, so that the head's row of it is "
            "untrained and, but for full training, frozen. What acts inside the layers gets round that. Prefix tuning "
            "comes to parts of the calls, as its CodeBLEU tells, and to hardly a whole one; prompt tuning is no nearer "
            "than the untouched model.",
            "IA3 was best at the larger of its two rates, so that a still larger one might do better; LoRA and full "
            "training write every call at the smaller of theirs.",
            "Every method that learns the new library forgets the old one: nothing of the old is in the training rows.",
        ),
        used="""
tasks:
  library:
    kind: generate
    train: train.jsonl
    test: test.jsonl
    prompt: "### Instruction:\\n{{ instruction }}\\n### Response:\\n```python\\n"
    target: "{{ code }}\\n```"
    stop: "```"
    metrics: [exact_match, ast_match, codebleu]
steps:
  lora: {adapt: {method: lora, r: 16, lora_alpha: 32, target_modules: all-linear}}
""",
        scales={
            "small": Scale(
                "Teaches a decoder of 93,760 numbers one library, and then another one in eighteen trainings per "
                "seed, on one CPU core; a seed takes about two minutes.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "em: share of 300 test rows whose call is written exactly; with two libraries the mean, and "
                    "em/<name> of each.",
                    "ast_match, codebleu: of the same answers; old: em on the library that the model knew before.",
                    "trained: numbers that trained; rate: the learning rate that was best on validation rows.",
                ),
                seeds=3,
            ),
        },
    ),
)
