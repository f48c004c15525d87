"""What the arms of many systems do alike: train a backbone on tasks through the house's own loop, and measure it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multitune.mixing.encoding import encode_choice, encode_prompts
from multitune.mixing.policies import Proportional
from multitune.mixing.tokens import TokenTable, tokenise
from multitune.models.loading import Backbone
from multitune.scoring.choices import choice_log_probabilities
from multitune.tasks.prompting import prompted_examples
from multitune.tasks.task import Split, Task
from multitune.training.config import TrainingConfig
from multitune.training.train import train


def train_on(backbone: Backbone, tasks: list[Task], training: Mapping[str, Any], seed: int, folder: Path) -> None:
    """Train what of the backbone requires gradients on the tasks, drawn in proportion to their sizes."""
    config = TrainingConfig(**training)

    def tables(split: Split) -> list[TokenTable]:
        length, cache = config.max_length, folder / "tokens"
        return [
            tokenise(task, split, backbone.tokenizer, backbone.form, folder, max_length=length, cache=cache)
            for task in tasks
        ]

    validation = tables("validation") if config.uses_validation else ()
    train(
        backbone,
        tables("train"),
        Proportional(),
        config,
        folder,
        seed=seed,
        validation=validation,
        title=f"seed {seed}",
    )


def held_out_losses(backbone: Backbone, tasks: list[Task], folder: Path, rows: int | None = None) -> dict[str, float]:
    """Return the nats per token of the answers of every task's validation rows, the first ``rows`` of them."""
    losses = {}
    for task in tasks:
        drawn = prompted_examples(task, "validation", folder, templates="first")
        prompted = list(itertools.islice(drawn, rows))
        prompts = encode_prompts(prompted, backbone.tokenizer, backbone.form, task)
        answers = [[encode_choice(row, row.target, backbone.tokenizer, backbone.form, task)] for row in prompted]
        log_probabilities = choice_log_probabilities(backbone, prompts, answers)
        tokens = sum(len(answer) for (answer,) in answers)
        losses[f"nll/{task.name}"] = -math.fsum(float(one[0]) for one in log_probabilities) / tokens
    return losses
