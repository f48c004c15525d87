"""Answers to rows that offer choices: the most probable one, under one normalisation or all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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

    if task.continuation is not None:
        return dict.fromkeys([config.choice_normalisation], _by_continuation(backbone, task, rows, config, report))
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


def _by_continuation(
    backbone: Backbone,
    task: Task,
    rows: Sequence[Prompted],
    config: ScoreConfig,
    report: Callable[[int, int], None] | None,
) -> list[int]:
    """Return the place of the choice after which the continuation of a row is most probable.

    Partial evaluation (Trinh & Le 2018, arXiv:1806.02847; Brown et al. 2020 for Winograd): the choices stand in the
    prompt and only the text after them is scored, which is the same for all, so that nothing is left to normalise.

    Raises:
        MultituneError: a row without choices, a continuation without text, or a row that is asked as a chat.
    """
    from multitune.mixing.chats import uses_chat_template
    from multitune.mixing.encoding import encode_choice, encode_prompts, plain_text
    from multitune.scoring.choices import choice_log_probabilities
    from multitune.tasks.templates import compile_template

    write = compile_template(str(task.continuation), f"tasks.{task.name}.continuation")
    prompts: list[list[int]] = []
    tails: list[list[list[int]]] = []
    for row in rows:
        _refuse_empty_choices(task, row)
        text = write(row.example.fields)
        if not text.strip() or row.messages or uses_chat_template(row, task.chat, backbone.tokenizer):
            what = (
                "is asked as a chat, whose turns end with the choice" if text.strip() else "has an empty continuation"
            )
            raise MultituneError(
                f"A row of task '{task.name}' {what}.", row.example.where, "Leave continuation out of the task."
            )
        begun = [
            replace(row, prompt=plain_text(replace(row, target=choice)), messages=(), target=text)
            for choice in row.choices
        ]
        prompts += encode_prompts(begun, backbone.tokenizer, backbone.form, task)
        tails += [[encode_choice(one, text, backbone.tokenizer, backbone.form, task)] for one in begun]
    log_p = choice_log_probabilities(backbone, prompts, tails, batch_tokens=config.batch_tokens, progress=report)
    ends = np.cumsum([len(row.choices) for row in rows])[:-1]
    return [int(score_K.argmax()) for score_K in np.split(np.concatenate(log_p), ends)]


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
