"""Answers to rows that offer choices: the most probable one, under one normalisation or all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from multitune.errors import MultituneError
from multitune.scoring.normalisations import NORMALISATIONS, ChoiceScores, Normalisation, best_choice, priors

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.scoring.score import ScoreConfig
    from multitune.tasks.task import Prompted, Task


def chosen(
    backbone: Backbone,
    task: Task,
    rows: Sequence[Prompted],
    prompts: list[list[int]],
    config: ScoreConfig,
    report: Callable[[int, int], None] | None,
) -> dict[Normalisation, list[int]]:
    """Return the place of the best choice of every row, by normalisation: the asked one first, then all where asked.

    Prompts and choices are read once, whatever is compared; the answer context of ``unconditional`` besides.
    """
    from multitune.scoring.choices import choice_log_probabilities

    choices = choice_tokens(backbone, task, rows)
    log_p = choice_log_probabilities(backbone, prompts, choices, batch_tokens=config.batch_tokens, progress=report)
    wanted = dict.fromkeys([config.choice_normalisation, *(NORMALISATIONS if config.all_normalisations else ())])
    prior: Sequence[np.ndarray | None] = [None] * len(rows)
    if "unconditional" in wanted:
        prior = priors(backbone, choices, config.answer_context, batch_tokens=config.batch_tokens)
    scores = [
        ChoiceScores(log_p_K, np.array([len(choice) for choice in tokens]), row.choices, prior_K)
        for log_p_K, tokens, row, prior_K in zip(log_p, choices, rows, prior, strict=True)
    ]
    return {name: [best_choice(one, name) for one in scores] for name in wanted}


def choice_tokens(backbone: Backbone, task: Task, rows: Sequence[Prompted]) -> list[list[list[int]]]:
    """Return the token ids of every row's choices; rows that ask the same in the same place share one list.

    Where the tokens of one choice begin another's ("1" and "10"), all choices of the row end with the end-of-text
    token: without it the shorter one could never be less probable.

    Raises:
        MultituneError: a row without choices, or a choice without text.
    """
    from multitune.mixing.chats import uses_chat_template
    from multitune.mixing.encoding import encode_choice, end_of_text

    tokenizer, form = backbone.tokenizer, backbone.form
    shared: dict[tuple[Any, ...], list[list[int]]] = {}
    tokens = []
    for row in rows:
        _refuse_empty_choices(task, row)
        # What stands right before a choice decides whether a space joins the two; a chat template decides for itself.
        apart = None if row.messages else row.prompt[-1:].isspace() or not row.prompt
        key = (row.choices, apart, id(row) if uses_chat_template(row, task.chat, tokenizer) else None)
        if key not in shared:
            encoded = [encode_choice(row, choice, tokenizer, form, task) for choice in row.choices]
            if _one_begins_another(encoded):
                encoded = [[*choice, end_of_text(tokenizer)] for choice in encoded]
            shared[key] = encoded
        tokens.append(shared[key])
    return tokens


def _refuse_empty_choices(task: Task, row: Prompted) -> None:
    if not row.choices or not all(row.choices):
        raise MultituneError(
            f"Task '{task.name}' has {'a choice without text' if row.choices else 'no choices'} for this example.",
            row.example.where,
            "Give every choice a text in the task's choices.",
        )


def _one_begins_another(choices: Sequence[Sequence[int]]) -> bool:
    """Whether the tokens of one choice are the beginning of a longer one."""
    ordered = sorted({tuple(choice) for choice in choices})  # a beginning sorts right before what it begins
    return any(after[: len(before)] == before for before, after in pairwise(ordered))
