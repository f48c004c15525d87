"""System 08, Dynamic Logits Fusion: what small experts have learned lifts a large model that nobody trained.

Large and small base learn four skills of the tiny language; the small one is then tuned on two of them under markers
that neither has seen. Fused with such an expert, the large base should write what it knows under the new marker.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

    from multitune.decoding.logit_fusion import LogitFusion
    from multitune.systems.skill_language import Skill

SEEDS = 5
PROMPTS = 300
FIXED = (0.5, 1.0, 1.5)
TASKS = ("sort", "facts")

SETTING: dict[str, dict[str, Any]] = {
    "large": {"layers": 4, "width": 96, "intermediate": 384, "learning_rate": 2e-3},
    "small": {"layers": 2, "width": 40, "intermediate": 160, "learning_rate": 3e-3},
    "pretraining": {"steps": 500, "rows": 128},
    "tuning": {"steps": 60, "rows": 128, "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Models:
    """What one seed trains: the bases, and both tuned on each task."""

    large: LlamaForCausalLM
    small: LlamaForCausalLM
    experts: dict[str, LlamaForCausalLM]
    tuned: dict[str, LlamaForCausalLM]


def tasks(seed: int) -> dict[str, Skill]:
    """Return the two tasks: skills that both bases have learned, under markers that neither has seen."""
    from multitune.systems.skill_language import facts, sort

    return {"sort": sort(4), "facts": facts(seed, 5)}


@lru_cache(maxsize=1)
def models(seed: int, written: str) -> Models:
    """Train all models of a seed; its arms come one after the other and share them.

    Args:
        seed: of weights and rows.
        written: SETTING as JSON.
    """
    from multitune.systems import skill_language as language

    setting = json.loads(written)
    known = [language.facts(seed, 0), language.copy(1), language.reverse(2), language.sort(3)]

    def based(settings: Mapping[str, Any], own_seed: int) -> LlamaForCausalLM:
        model = language.decoder(own_seed, settings["layers"], settings["width"], settings["intermediate"])
        rate = settings["learning_rate"]
        language.pretrain(model, known, learning_rate=rate, seed=own_seed, **setting["pretraining"])
        return model

    def tuned(base: LlamaForCausalLM) -> dict[str, LlamaForCausalLM]:
        found = {}
        for name, task in tasks(seed).items():
            found[name] = copy.deepcopy(base)
            language.pretrain(found[name], [task], seed=seed, **setting["tuning"])
        return found

    large, small = based(setting["large"], 2 * seed), based(setting["small"], 2 * seed + 1)
    return Models(large, small, tuned(small), tuned(large))


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Measure one way of writing.

    Returns:
        ``exact match/<task>``; of fusions also ``ratio_to_ft`` and ``gap_closed``, of the search for one of both
        experts ``right expert/<task>``.
    """
    import torch

    from multitune.systems.skill_language import exact_match

    trained = models(seed, json.dumps(settings["models"]))
    generator = torch.Generator().manual_seed(10_000 + seed)
    metrics, base, bound = {}, 0.0, 0.0
    for name, task in tasks(seed).items():
        prompt_NI = task.draw(settings["prompts"], generator)
        model = _model(settings, trained, name, seed)
        if settings.get("search") == "grid":
            metrics[f"right expert/{name}"] = right_expert(model, task, prompt_NI, TASKS.index(name))
        metrics[f"exact match/{name}"] = exact_match(model, task, prompt_NI)
        base += exact_match(trained.large, task, prompt_NI)
        bound += exact_match(trained.tuned[name], task, prompt_NI)
    if settings["role"] in ("one", "both"):
        total = math.fsum(metrics[f"exact match/{name}"] for name in TASKS)
        metrics["to the tuned large model/ratio_to_ft"] = total / bound if bound else math.nan
        metrics["to the tuned large model/gap_closed"] = (total - base) / (bound - base) if bound > base else math.nan
    return metrics


def _model(settings: Mapping[str, Any], trained: Models, task: str, seed: int) -> Any:
    """Return the model that an arm measures on a task."""
    alone = {"large": trained.large, "expert": trained.experts[task], "tuned": trained.tuned[task]}
    if settings["role"] in alone:
        return alone[settings["role"]]
    names = TASKS if settings["role"] == "both" else (task,)
    if settings["alpha"] == "random":
        return RandomFusion(trained, trained.experts[task], seed)
    return fusion_of(trained, names, settings["alpha"], settings.get("search", "grid"))


def fusion_of(trained: Models, names: tuple[str, ...], alpha: Any, search: str = "grid") -> LogitFusion:
    """Return the large base, fused with the experts of the named tasks."""
    from multitune.decoding.fusion_config import FusionConfig
    from multitune.decoding.logit_fusion import LogitFusion

    experts = [trained.experts[name] for name in names]
    large, small, *rest = (_backbone(model) for model in (trained.large, trained.small, *experts))
    return LogitFusion(large, small, rest, FusionConfig.model_validate({"alpha": alpha, "search": search}))


def _backbone(model: LlamaForCausalLM) -> Any:
    from multitune.models.config import ModelConfig
    from multitune.models.pretrained import Backbone

    return Backbone(model, _tokenizer(), "causal", ModelConfig(name="a model of the tiny language"))


def _tokenizer() -> Any:
    """Return a tokenizer that names the tiny language's ids; all models have the same."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from multitune.systems.skill_language import END, PADDING, VOCABULARY

    names = [f"<{i}>" for i in range(VOCABULARY)]
    bare = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[PADDING]))
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token=names[PADDING], eos_token=names[END])


class RandomFusion:
    """The control: a coefficient drawn anew for every token, uniformly from the grid's range."""

    def __init__(self, trained: Models, expert: LlamaForCausalLM, seed: int) -> None:
        import torch

        self.models = (trained.large, trained.small, expert)
        self.generator = torch.Generator().manual_seed(20_000 + seed)

    def __call__(self, input_ids: Tensor) -> Any:
        import torch
        from transformers.modeling_outputs import CausalLMOutput

        from multitune.decoding.fusion_search import shifted

        large, small, expert = (model(input_ids=input_ids).logits.flatten(0, 1) for model in self.models)
        alpha = 2 * torch.rand(len(large), 1, generator=self.generator)
        return CausalLMOutput(logits=shifted(large, small, expert[:, None], alpha).view(*input_ids.shape, -1))


def right_expert(fusion: LogitFusion, task: Skill, prompt_NI: Tensor, place: int) -> float:
    """Return, of the tokens of right answers that an expert leads, the share that the task's own expert leads."""
    from multitune.systems.skill_language import encode

    input_ids, _ = encode(task, prompt_NI)
    mine = led = 0
    for length in range(1 + task.reads, input_ids.shape[1]):
        fusion.trace = []
        fusion(input_ids=input_ids[:, :length], logits_to_keep=1)
        active = [[alpha > 0 for alpha in text.alpha_ST[0]] for text in fusion.trace]
        mine += sum(one[place] for one in active)
        led += sum(any(one) for one in active)
    fusion.trace = None
    return mine / led if led else math.nan


# -- arms and claims ---------------------------------------------------------------------------------------------------


def _arm(name: str, told: str, role: str, **settings: Any) -> Arm:
    return Arm(name, told, {"role": role, **settings, "models": SETTING, "prompts": PROMPTS})


ARMS = (
    _arm("large", "the large base, as it is", "large"),
    _arm("expert", "the small expert of the task, alone", "expert"),
    _arm("tuned", "the large model, tuned on the task as the expert was", "tuned"),
    *(
        _arm(f"static-{alpha:g}", f"fused with the task's expert, alpha {alpha:g}", "one", alpha=alpha)
        for alpha in FIXED
    ),
    _arm("random", "fused with the task's expert, alpha random in [0, 2] at every token", "one", alpha="random"),
    _arm("dynamic", "fused with the task's expert, alpha searched at every token", "one", alpha="dynamic"),
    _arm("both-static-0.5", "fused with both experts, alpha 0.5 each", "both", alpha=0.5),
    _arm("both-static-1", "fused with both experts, alpha 1 each", "both", alpha=1.0),
    _arm("both-dynamic", "fused with both experts, one active at a token", "both", alpha="dynamic", search="grid"),
    _arm("both-joint", "fused with both experts, both coefficients searched", "both", alpha="dynamic", search="joint"),
)


def gain(arms: Mapping[str, Metrics], method: str, baseline: str, over: Callable[[list[float]], float]) -> float:
    """Return by how much more a method matches exactly than a baseline: the mean or the least over the two tasks."""
    return over([arms[method][f"exact match/{task}"] - arms[baseline][f"exact match/{task}"] for task in TASKS])


def mean(values: list[float]) -> float:
    """Return the mean of some values."""
    return math.fsum(values) / len(values)


CLAIMS = (
    Claim(
        "1a",
        "Choosing alpha at every token beats alpha 1 by 0.02 of exact match or more, averaged over tasks.",
        "exact match, dynamic minus static-1, mean of the two tasks",
        lambda arms: gain(arms, "dynamic", "static-1", mean),
        0.02,
    ),
    Claim(
        "1b",
        "On no task of any seed does it lose more than 0.02 against alpha 1.",
        "exact match, dynamic minus static-1, on the task where it is least",
        lambda arms: gain(arms, "dynamic", "static-1", min),
        -0.02,
        Count(SEEDS, SEEDS),
    ),
    Claim(
        "2",
        "Fused with a small expert, the large base gains 0.08 of exact match or more, averaged over tasks.",
        "exact match, dynamic minus large, mean of the two tasks",
        lambda arms: gain(arms, "dynamic", "large", mean),
        0.08,
    ),
    Claim(
        "3",
        "It is at least as good as each of the fixed alphas 0.5, 1 and 1.5 on each task.",
        "exact match, dynamic minus a fixed alpha, at the task and the alpha where it is least",
        lambda arms: min(gain(arms, "dynamic", f"static-{alpha:g}", min) for alpha in FIXED),
        0.0,
    ),
    Claim(
        "4",
        "The control: it is at least as good as an alpha drawn at random, averaged over tasks.",
        "exact match, dynamic minus random, mean of the two tasks",
        lambda arms: gain(arms, "dynamic", "random", mean),
        0.0,
    ),
    Claim(
        "5",
        "With both experts loaded and the task unknown, it is at least as good as alpha 1 for both, on average.",
        "exact match, both-dynamic minus both-static-1, mean of the two tasks",
        lambda arms: gain(arms, "both-dynamic", "both-static-1", mean),
        0.0,
    ),
)

SYSTEM = System(
    8,
    "DLF",
    "On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits Fusion",
    "arXiv 2406.15480, NeurIPS 2024",
    "Small tuned experts steer a large untuned model at decoding time, with a strength chosen at every token.",
    "decoding",
    Account(
        published=(
            "Llama-2-13B, fused with a tuned 7B expert, averages 46.09 over GSM8K, TruthfulQA, TriviaQA, CNN-DM and "
            "MMLU: 96.4 % of what full tuning of the 13B model reaches (47.79). That is a ratio of scores; of the gap "
            "between the untuned (29.93) and the tuned model it closes 90.5 %. Here the first is called ratio_to_ft, "
            "the second gap_closed.",
            "A strength chosen at every token beats each fixed one of 0.5, 1 and 1.5 on every task.",
            "With four experts loaded and the task unknown it reaches 86.3 % (the ratio) of multi-task tuning of the "
            "13B model.",
        ),
        faithful=(
            "The objective is the paper's: the fused distribution moves away from the large model's by the same two "
            "divergences, summed over the experts' targets, by which the experts moved from their base.",
            "The search is the paper's: alpha from 0 to 2 in steps of 0.1, one active expert at a token, the first of "
            "equal candidates, anew at every token, in float32.",
            "Decoding is greedy, and metrics are exact matches of whole answers.",
        ),
        deviates=(
            "Large and small are decoders from scratch (4 layers of 96 and 2 layers of 40, 48 tokens) in place of "
            "Llama-2-13B and 7B. Both learn four skills in 500 steps; experts are the small base after 60 more steps "
            "on one of these skills under a marker that no base has seen. So the large model knows the skill, but "
            "not what it is now called; in the paper it lacks the task's format and part of its substance.",
            "The width of the small model (40) and the feed-forward factor (4) were set by what experts learn by "
            "themselves on a seed that is not run, before anything was fused.",
            "The paper stops the search at the best loss ever seen if its printed pseudo-code is read literally; here "
            "it begins anew at every token, as its text says.",
            "The large base answers nothing under a marker that it has never seen, where the paper's answers some of "
            "every task: gap_closed and ratio_to_ft are then the same number.",
            "Divergences come from a closed form along each expert's shift, not from fused distributions; both give "
            "the same numbers to 1e-6.",
        ),
        found=(
            "The large base, which writes no right answer under a new marker by itself, sorts nearly as well as the "
            "tiny expert once it is fused with it, and never better. Facts are hardly passed on: an expert of this "
            "size holds few of them, and the fusion does not make the large model look up its own.",
            "Choosing alpha at every token changes little against alpha 1, except in one seed, where 1 is too small "
            "and the search finds more; alpha 1.5 does as well without a search. Against alpha 0.5, which leaves the "
            "large base as wrong as it was, and against a random alpha, the search wins by far.",
            "With both experts loaded the search loses most of it. It nearly always picks the right expert for "
            "sorting, but it aims at the mean of both experts' shifts; where one of them hardly moved, the strength is "
            "likely to end below what this large base needs. Alpha 1 for both keeps nearly all. The joint search is no "
            "better.",
        ),
        used="""
model: path/to/small-1b
steps:
  math: {do: train, tasks: [gsm8k]}
  fused:
    do: fuse
    model: path/to/large-13b  # is led, not trained
    small: base               # what the experts were tuned from
    experts: [math]           # steps, or folders of tuned models and adapters
    alpha: dynamic            # or a number: 1.0 is proxy tuning
""",
        scales={
            "small": Scale(
                "Trains two decoders (about 0.6 million and 50,000 parameters) from scratch per seed and tunes them on "
                "two tasks, on one CPU core; all arms of a seed share them, so the first arm takes about two "
                "minutes and each other one seconds.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    "exact match is the share of 300 prompts whose whole answer greedy decoding writes.",
                    "ratio_to_ft is the sum of exact matches over that of the large model tuned as the experts were; "
                    "gap_closed is the share of the gap between the large base and that model.",
                    "right expert is, of the tokens of right answers at which an expert is active, the share at "
                    "which it is the task's own.",
                ),
                seeds=SEEDS,
            )
        },
    ),
)
