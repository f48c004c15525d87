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
BIG, SMALL_TASK, TINY_TASK = ("reverse", "rotate"), "max", "sum"


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
        ``nll/<task>``: nats per token of the answer; ``accuracy/<task>``: share of answers written exactly, greedily.
    """
    from multitune.mixing.policies import Proportional
    from multitune.mixing.tokens import tokenise
    from multitune.training.config import TrainingConfig
    from multitune.training.train import train

    backbone = small_decoder(seed)
    tasks = [sequence_task(skill, rows, settings["held_out"], seed) for skill, rows in settings["tasks"].items()]
    tables = [
        tokenise(task, "train", backbone.tokenizer, "causal", folder, max_length=16, cache=folder / "tokens")
        for task in tasks
    ]
    config = TrainingConfig(
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        micro_batch_size=settings["batch_size"],
        max_length=16,
        pack="never",  # so that a batch is a number of examples, as published
        aggregation=settings["aggregation"],
        learning_rate=3e-3,
        schedule="constant",
        warmup=0.0,
        logging_steps=settings["steps"],
        save_steps=500,
    )
    train(backbone, tables, Proportional(), config, folder, seed=seed, title=f"seed {seed}")
    return measured(backbone, tasks, folder)


def measured(backbone: Backbone, tasks: list[Task], folder: Path) -> dict[str, float]:
    """Return negative log-likelihood per answer token and exact-match accuracy on every task's validation rows."""
    from multitune.mixing.encoding import encode_choice, encode_prompts
    from multitune.scoring.choices import choice_log_probabilities
    from multitune.scoring.score import ScoreConfig, score_tasks
    from multitune.tasks.prompting import prompted_examples

    metrics = {}
    for task, score in zip(
        tasks, score_tasks(backbone, tasks, folder, ScoreConfig(split="validation"), seed=0), strict=True
    ):
        rows = list(prompted_examples(task, "validation", folder, templates="first"))
        prompts = encode_prompts(rows, backbone.tokenizer, backbone.form, task)
        answers = [[encode_choice(row, row.target, backbone.tokenizer, backbone.form, task)] for row in rows]
        log_probabilities = choice_log_probabilities(backbone, prompts, answers)
        tokens = sum(len(answer) for (answer,) in answers)
        metrics[f"nll/{task.name}"] = -math.fsum(float(one[0]) for one in log_probabilities) / tokens
        metrics[f"accuracy/{task.name}"] = score.metrics["exact_match"]
    return metrics


# -- arms and claims ---------------------------------------------------------------------------------------------------

CASES = {"case1": "token_mean", "case2": "sample_mean", "case3": "task_token_mean"}


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
        "1 - loss of max in case3 / in case1",
        lambda arms: _lower(arms, f"nll/{SMALL_TASK}", "case3", "case1"),
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
)

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
        ),
        deviates=(
            "A decoder of two layers, 48 wide, learns sequence tasks from scratch in place of code models of 13 "
            "billion parameters and more: what is tested is the balance between tasks of different size and "
            "difficulty, on a CPU. Each task is a word and 6 of 16 symbols; the answer is their reverse (8000 training "
            "examples), their rotation by one (800), their maximum (300).",
            "The architecture is transformers' Llama with its own initialisation, trained in full by AdamW at a "
            "constant 3e-3 with gradients clipped to a norm of 1: no choice is made for one arm and not for the "
            "others.",
            "Held-out likelihood and exact-match accuracy on 300 examples per task take the place of HumanEval and "
            "MBPP.",
            "Converged is taken to be nine times the steps: under plain fine-tuning all big tasks are learned by then.",
        ),
        used="""
steps:
  joint:
    do: train
    training:
      aggregation: task_token_mean  # case 3; cases 1, 2 and 4 are token_mean, sample_mean and task_sample_mean
""",
        scales={
            "small": Scale(
                "Trains a decoder of about 90,000 parameters from scratch once per arm and seed, on one CPU core; an "
                "arm takes between 6 seconds and a minute and a half.",
                ARMS,
                CLAIMS,
                run_small,
            )
        },
    ),
)
