"""System 20, MFTCoder: losses that let every task of a mixture count as intended, and CoBa, which weighs them anew.

The small reproduction trains a decoder from scratch on sequence tasks of very different sizes and difficulty, through
the same trainer, mixture and scoring that a recipe uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.systems.claims import Claim, Count, Metrics
from multitune.systems.system import Account, Arm, Scale, System

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.tasks.task import Task

# -- the sequence tasks ------------------------------------------------------------------------------------------------

SYMBOLS, LENGTH = 16, 6

SKILLS: dict[str, Callable[[list[int]], list[int]]] = {
    "reverse": lambda symbols: symbols[::-1],
    "rotate": lambda symbols: [*symbols[1:], symbols[0]],
    "max": lambda symbols: [max(symbols)],
    "sum": lambda symbols: [sum(symbols) % SYMBOLS],
}

THREE = {"reverse": 8000, "rotate": 800, "max": 300}
FOUR = {**THREE, "sum": 40}
BIG = ("reverse", "rotate")


def examples(skill: str, first: int, rows: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield rows ``first`` to ``first + rows`` of a skill's fixed order: the skill's word and 6 symbols, its answer.

    No two rows of a skill are alike, so rows apart in this order never leak into each other.
    """
    import numpy as np

    generator = np.random.default_rng([seed, list(SKILLS).index(skill)])
    for code in generator.choice(SYMBOLS**LENGTH, first + rows, replace=False)[first:].tolist():
        symbols = [code // SYMBOLS**place % SYMBOLS for place in range(LENGTH)]
        yield {"prompt": " ".join([skill, *_words(symbols)]), "answer": " ".join(_words(SKILLS[skill](symbols)))}


def _words(symbols: list[int]) -> list[str]:
    return [f"s{symbol}" for symbol in symbols]


def sequence_task(skill: str, rows: int, held_out: int, seed: int) -> Task:
    """Return a skill as a task: the first rows of its order are held out, the next ``rows`` train."""
    from multitune.tasks.task import Source, Task

    def source(first: int, count: int) -> Source:
        arguments = {"skill": skill, "first": first, "rows": count, "seed": seed}
        return Source(generator=f"{__name__}:examples", arguments=arguments)

    return Task(
        name=skill,
        train=source(held_out, rows),
        validation=source(0, held_out),
        kind="generate",
        prompt="{{ prompt }}",
        target="{{ answer }}",
        max_new_tokens=LENGTH + 1,
    )


def small_decoder(seed: int) -> Backbone:
    """Return a Llama of two layers, 48 wide, with random weights of the seed; one token per word of the tasks."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from multitune.models.config import ModelConfig
    from multitune.models.loading import Backbone

    vocabulary = ["<pad>", "<eos>", *SKILLS, *_words(list(range(SYMBOLS)))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=48,
                intermediate_size=4 * 48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=32,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )
    return Backbone(model, tokenizer, "causal", ModelConfig(name=f"decoder-from-seed-{seed}"), ())


def run_small(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Train the small decoder as one arm says and measure it on every task's held-out rows.

    Returns:
        ``nll/<task>``: nats per token of the answer; ``accuracy/<task>``: share of answers written exactly, greedily;
        with CoBa also what ``watched`` returns of the smallest task.
    """
    from multitune.scoring.score import ScoreConfig, score_tasks
    from multitune.systems.arms import held_out_losses, train_on

    backbone = small_decoder(seed)
    tasks = [sequence_task(skill, rows, settings["held_out"], seed) for skill, rows in settings["tasks"].items()]
    training = {
        "steps": settings["steps"],
        "batch_size": settings["batch_size"],
        "micro_batch_size": settings["batch_size"],
        "max_length": 16,
        "pack": "never",  # so that a batch is a number of examples, as published
        "aggregation": settings["aggregation"],
        "learning_rate": 3e-3,
        "schedule": "constant",
        "warmup": 0.0,
        "logging_steps": settings["steps"],
        "save_steps": 500,
    }
    if "balancer" in settings:  # its weights over time are read from the checkpoints
        training |= {"balancer": settings["balancer"], "save_steps": 50, "save_total_limit": 1000}
    train_on(backbone, tasks, training, seed, folder)
    metrics = held_out_losses(backbone, tasks, folder)
    for score in score_tasks(backbone, tasks, folder, ScoreConfig(split="validation"), seed=0):
        metrics[f"accuracy/{score.task}"] = score.metrics["exact_match"]
    return metrics | (watched(folder) if "balancer" in settings else {})


def watched(folder: Path) -> dict[str, float]:
    """Return what CoBa made of the last task, from its state in the checkpoints.

    Returns:
        ``slope_turned``: the first checkpoint's step at which the slope of the task's validation loss is positive;
        ``weight_after``: the task's mean weight in the checkpoints from there on. nan when the slope never turns.
    """
    from multitune.training.checkpoints import load_balancer, sorted_checkpoints

    states = [
        (int(path.name.rpartition("-")[2]), load_balancer(path)) for path in sorted_checkpoints(folder / "checkpoints")
    ]
    turned = [step for step, state in states if len(state["slope_UT"]) and state["slope_UT"][-1, -1] > 0]
    if not turned:
        return {"slope_turned": math.nan, "weight_after": math.nan}
    after = [float(state["weight_T"][-1] / state["weight_T"].sum()) for step, state in states if step >= turned[0]]
    return {"slope_turned": float(turned[0]), "weight_after": math.fsum(after) / len(after)}


def run_full(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
    """Tune a pretrained model as one arm says; every part of it is in the settings, as a recipe would say it.

    Returns:
        ``nll/<task>``: nats per token of the answers of held-out rows, of the tasks that the arm trains on.
    """
    from multitune.adaptation.adapting import adapt
    from multitune.adaptation.config import AdaptationConfig
    from multitune.models.config import ModelConfig
    from multitune.models.loading import load_backbone
    from multitune.systems.arms import held_out_losses, train_on
    from multitune.tasks.task import Task

    tasks = [Task(name=name, **told) for name, told in settings["tasks"].items()]
    backbone = adapt(load_backbone(ModelConfig(**settings["model"])), AdaptationConfig(**settings["adapt"]), seed=seed)
    train_on(backbone, tasks, settings["training"], seed, folder)
    return held_out_losses(backbone, tasks, folder, settings["held_out"])


# -- arms and claims ---------------------------------------------------------------------------------------------------

CASES = {"case1": "token_mean", "case2": "sample_mean", "case3": "task_token_mean"}
COBA = {"method": "coba", "variant": "code", "warmup_steps": 100, "window": 200, "tau": 5.0}
COBA |= {"update_interval": 1, "validation_rows": 4}


def _arm(name: str, told: str, case: str, **settings: Any) -> Arm:
    defaults = {"aggregation": CASES[case], "tasks": THREE, "held_out": 300, "steps": 450, "batch_size": 32}
    return Arm(name, told, {**defaults, **settings})


ARMS = (
    _arm("case1", "token mean, plain fine-tuning", "case1"),
    _arm("case2", "sample mean", "case2"),
    _arm("case3", "task-token mean", "case3"),
    _arm("case3-3x", "task-token mean, three times the steps", "case3", steps=1350),
    _arm("case3-128", "task-token mean, batches of 128", "case3", batch_size=128),
    _arm("case1-9x", "token mean, nine times the steps", "case1", steps=4050),
    _arm("case3-9x", "task-token mean, nine times the steps", "case3", steps=4050),
    _arm("coba-9x", "CoBa's weights, nine times the steps", "case3", steps=4050, balancer=COBA),
    _arm("four-case3", "task-token mean, with a fourth task of 40 examples", "case3", tasks=FOUR, steps=1350),
    _arm(
        "four-coba", "CoBa's weights, with a fourth task of 40 examples", "case3", tasks=FOUR, steps=1350, balancer=COBA
    ),
)


def worst(metrics: Metrics, tasks: tuple[str, ...]) -> float:
    """Return the accuracy of the task that does worst."""
    return min(metrics[f"accuracy/{task}"] for task in tasks)


def _lower(arms: Mapping[str, Metrics], metric: str, method: str, baseline: str) -> float:
    """Return by what share a loss is lower in the method's arm."""
    return 1 - arms[method][metric] / arms[baseline][metric]


CLAIMS = (
    Claim(
        "1",
        "The task-token mean (case 3) lowers the small task's validation loss by 25 % or more against plain "
        "fine-tuning (case 1).",
        "share by which the loss of max is lower in case3 than in case1",
        lambda arms: _lower(arms, "nll/max", "case3", "case1"),
        0.25,
        Count(4, 5),
    ),
    Claim(
        "2a",
        "With three times the steps, both big tasks reach an accuracy of 0.95 under case 3 too.",
        "accuracy of the worse of reverse and rotate in case3-3x",
        lambda arms: worst(arms["case3-3x"], BIG),
        0.95,
    ),
    Claim(
        "2b",
        "With batches of 128, both big tasks reach an accuracy of 0.95 under case 3 too.",
        "accuracy of the worse of reverse and rotate in case3-128",
        lambda arms: worst(arms["case3-128"], BIG),
        0.95,
    ),
    Claim(
        "3a",
        "After convergence, at equal steps, the worst task is at least as accurate under case 3 as under case 1.",
        "accuracy of the worst task, case3-9x minus case1-9x",
        lambda arms: worst(arms["case3-9x"], tuple(THREE)) - worst(arms["case1-9x"], tuple(THREE)),
        0.0,
    ),
    Claim(
        "3b",
        "After convergence, at equal steps, the worst task is at least as accurate under CoBa as under case 1.",
        "accuracy of the worst task, coba-9x minus case1-9x",
        lambda arms: worst(arms["coba-9x"], tuple(THREE)) - worst(arms["case1-9x"], tuple(THREE)),
        0.0,
    ),
    Claim(
        "4a",
        "When the validation loss of a task of 40 examples turns to rise, CoBa's weight of it falls below uniform.",
        "1/4 minus the mean weight of sum after the turn, in four-coba",
        lambda arms: 1 / len(FOUR) - arms["four-coba"]["weight_after"],
        0.0,
    ),
    Claim(
        "4b",
        "The task of 40 examples ends with a lower validation loss under CoBa than under uniform weights.",
        "share by which the loss of sum is lower in four-coba than in four-case3",
        lambda arms: _lower(arms, "nll/sum", "four-coba", "four-case3"),
        0.0,
    ),
)

# -- full scale --------------------------------------------------------------------------------------------------------


def _from_hub(hub: str, prompt: str, target: str, validation: Mapping[str, Any]) -> dict[str, Any]:
    train = {"hub": hub, "split": "train"}
    return {"train": train, "validation": validation, "kind": "generate", "prompt": prompt, "target": target}


CODE_TASKS = {
    "instructions": _from_hub(
        "codefuse-ai/Evol-instruction-66k", "{{ instruction }}", "{{ output }}", {"fraction": 0.02}
    ),
    "exercises": _from_hub(
        "codefuse-ai/CodeExercise-Python-27k",
        "{{ chat_rounds[0].content }}",
        "{{ chat_rounds[1].content }}",
        {"fraction": 0.02},
    ),
    "translation": _from_hub(
        "google/code_x_glue_cc_code_to_code_trans",
        "Translate this Java method to C#.\n{{ java }}",
        "{{ cs }}",
        {"hub": "google/code_x_glue_cc_code_to_code_trans", "split": "validation"},
    ),
}


def _full_arm(name: str, told: str, case: str, tasks: tuple[str, ...] = tuple(CODE_TASKS), **training: Any) -> Arm:
    settings = {
        "model": {"name": "Qwen/Qwen2.5-Coder-1.5B", "quantize": "4bit"},
        "adapt": {"method": "lora", "r": 96, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"},
        "tasks": {task: CODE_TASKS[task] for task in tasks},
        "held_out": 500,
        "training": {
            "epochs": 1.0,
            "batch_size": 32,
            "micro_batch_size": 8,
            "max_length": 2048,
            "learning_rate": 1e-4,
            "gradient_checkpointing": True,
            "aggregation": CASES[case],
            **training,
        },
    }
    return Arm(name, told, settings)


FULL_ARMS = (
    *(_full_arm(f"alone-{task}", f"{task} alone", "case1", (task,)) for task in CODE_TASKS),
    _full_arm("case1", "all tasks, token mean: plain fine-tuning on the mixture", "case1"),
    _full_arm("case3", "all tasks, task-token mean", "case3"),
    _full_arm("coba", "all tasks, CoBa's weights", "case3", balancer=COBA),
)


def _mean_gain(arms: Mapping[str, Metrics], method: str, baseline: str | None) -> float:
    """Return the mean over tasks of the share by which held-out losses are lower; None: than each task alone."""
    gains = [_lower(arms, f"nll/{task}", method, baseline or f"alone-{task}") for task in CODE_TASKS]
    return math.fsum(gains) / len(gains)


FULL_CLAIMS = (
    Claim(
        "F1",
        "Averaged over tasks, held-out losses under case 3 are no higher than under plain fine-tuning on the mixture.",
        "mean over tasks of the share by which the loss is lower in case3 than in case1",
        lambda arms: _mean_gain(arms, "case3", "case1"),
        0.0,
    ),
    Claim(
        "F2",
        "Averaged over tasks, held-out losses of one model under case 3 are no higher than those of a model per task.",
        "mean over tasks of the share by which the loss is lower in case3 than for the task alone",
        lambda arms: _mean_gain(arms, "case3", None),
        0.0,
    ),
    Claim(
        "F3",
        "Averaged over tasks, held-out losses under CoBa's weights are no higher than under uniform ones.",
        "mean over tasks of the share by which the loss is lower in coba than in case3",
        lambda arms: _mean_gain(arms, "coba", "case3"),
        0.0,
    ),
)

LOSS_TOLD = "nll is the loss on held-out rows, in nats per token of the answer."

SYSTEM = System(
    20,
    "MFTCoder",
    "MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning",
    "arXiv 2311.02303, KDD 2024; CoBa: arXiv 2410.06741, EMNLP 2024",
    "Task-balanced losses train one model on many tasks so that none starves and all converge together.",
    "objectives",
    Account(
        published=(
            "Averaging the loss per task before averaging over tasks (case 3) beats tuning on the plain mixture, and "
            "tuning on each task alone, on average over code benchmarks.",
            "CoBa, which weighs the tasks by the slopes of their validation losses, lets tasks converge together and "
            "is up to 13 % better than the second-best weighting, at about the cost of uniform weights.",
        ),
        faithful=(
            "The data-balance losses are equations 1 and 2 of the paper, taken over the whole optimiser step.",
            "Answers and their end token carry loss; prompts and padding never do.",
            "Tasks are drawn in proportion to their sizes from one shuffled stream.",
            "CoBa weighs as the authors' code does: 100 steps of warm-up, slopes over 200 steps, tau 5, one validation "
            "mini-batch after every step, losses relative to a full validation pass before the first.",
        ),
        deviates=(
            "A decoder of two layers, 48 wide, learns sequence tasks from scratch in place of code models of 13 "
            "billion parameters and more: what is tested is the balance between tasks of different size and "
            "difficulty, on a CPU. Each task is a word and 6 of 16 symbols; the answer is their reverse (8000 training "
            "examples), their rotation by one (800), their maximum (300), and in claim 4 their sum modulo 16 (40).",
            "The architecture is transformers' Llama with its own initialisation, trained in full by AdamW at a "
            "constant 3e-3 with gradients clipped to a norm of 1: no choice is made for one arm and not for the "
            "others.",
            "Held-out likelihood and exact-match accuracy on 300 examples per task take the place of HumanEval and "
            "MBPP. The full scale compares held-out likelihood too: scoring those benchmarks means running code that "
            "a model wrote, for which multitune has no sandbox.",
            "Every task is in every validation mini-batch, with 4 rows: the authors' code draws tasks at random and "
            "fits slopes on shifted steps where one is missing.",
            "CoBa watches the same held-out rows on which the arms are compared, as published; only slopes of their "
            "losses reach the weights. Its weight of the fourth task is read every 50 steps, "
            "from the first reading on at which the slope of that task's validation loss is positive.",
            "Converged is taken to be nine times the steps: plain fine-tuning has learned both big tasks by then.",
        ),
        found=(
            "Case 3 buys progress on the rare tasks with progress on the frequent one. Rotate is learned sooner in "
            "every seed; reverse, most of the rows, is left far behind, and neither the longer runs nor the larger "
            "batches of claim 2 make up for it.",
            "The smallest task is hardly learned in the short runs, whatever the arm, and the arms differ less than "
            "the seeds do. Larger batches lower its loss in every seed.",
            "Nine times the steps are no convergence for case 3 in every seed: where reverse is still unlearned, claim "
            "3a compares an unfinished run.",
            "CoBa's weight of the overfitting task stays near uniform after the turn, and its loss ends higher in some "
            "seeds and lower in others.",
        ),
        used="""
steps:
  joint:
    do: train
    training:
      aggregation: task_token_mean  # case 3; cases 1, 2 and 4 are token_mean, sample_mean and task_sample_mean
      balancer: {method: coba}      # every task then needs validation rows
""",
        scales={
            "small": Scale(
                "Trains a decoder of about 76,000 parameters from scratch once per arm and seed, on one CPU core; an "
                "arm takes between 6 seconds and two minutes.",
                ARMS,
                CLAIMS,
                run_small,
                (
                    LOSS_TOLD,
                    "accuracy is the share of held-out answers that are written exactly, greedily.",
                    "slope_turned is the first reading's step at which CoBa's slope of the last task's validation loss "
                    "is positive, and weight_after that task's mean weight from there on.",
                ),
            ),
            "full": Scale(
                "Tunes Qwen2.5-Coder-1.5B in 4 bits with LoRA on Evol-instruction-66k, CodeExercise-Python-27k and "
                "CodeXGLUE's translation from Java to C#, one epoch per arm and seed, on a GPU of 80 GB; model and "
                "data come from the hub.",
                FULL_ARMS,
                FULL_CLAIMS,
                run_full,
                (LOSS_TOLD,),
                seeds=3,
                needs_gpu=True,
            ),
        },
    ),
)
