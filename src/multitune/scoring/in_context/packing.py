"""Questions with demonstrations before them: as one text, or as earlier turns of a chat, as many as the model can read.

    prompt = [instruction + blank line] + demonstration_1 + separator + ... + demonstration_K + separator + question

What does not fit the model's positions together with the longest answer loses whole demonstrations from the front.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from multitune.errors import MultituneError
from multitune.scoring.in_context.demonstrations import demonstrations_for, pool_of
from multitune.tasks.task import Message, Prompted

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.scoring.in_context.demonstrations import Demonstrations
    from multitune.scoring.score import ScoreConfig
    from multitune.tasks.task import Task

logger = logging.getLogger("multitune.scoring")


@dataclass(frozen=True)
class Packed:
    """Questions as they are asked.

    Attributes:
        rows: whose prompt or messages hold the demonstrations.
        shots: demonstrations asked for.
        used: demonstrations that stand before every question.
        prompts: digest of all prompts: equal where two models were asked the very same.
    """

    rows: list[Prompted]
    shots: int
    used: list[int]
    prompts: str

    @property
    def mean_used(self) -> float:
        """Demonstrations per question."""
        return sum(self.used) / len(self.used)


def with_demonstrations(
    backbone: Backbone, task: Task, rows: Sequence[Prompted], folder: Path, config: ScoreConfig
) -> Packed:
    """Return questions with as many of their demonstrations as fit the model's positions.

    Args:
        backbone: a causal or encoder-decoder LM.
        task: resolved.
        rows: the questions.
        folder: what the task's paths are relative to.
        config: its ``shots``, ``demonstrations`` and ``templates``.

    Raises:
        MultituneError: an encoder is to read demonstrations; the task has no rows to draw from; a question does not fit
            the model's positions even by itself.
    """
    settings = config.demonstrations
    if not config.shots and not settings.instruction:
        return Packed(list(rows), 0, [0] * len(rows), digest_of(rows))
    if backbone.form == "encoder":
        raise MultituneError(
            "An encoder answers by its heads and reads no demonstrations.",
            f"task '{task.name}', shots: {config.shots}",
            "Set shots: 0 without an instruction, or take a causal or encoder-decoder model.",
        )
    drawn: list[list[Prompted]] = [[] for _ in rows]
    if config.shots:
        pool = pool_of(task, folder, settings, templates=config.template_policy)
        drawn = [demonstrations_for(row, pool, config.shots, settings) for row in rows]
    packed = fitting(backbone, task, rows, drawn, settings)
    used = [used for _, used in packed]
    _say_dropped(task, config.shots, [len(one) for one in drawn], used)
    asked = [row for row, _ in packed]
    return Packed(asked, config.shots, used, digest_of(asked))


def pack(
    question: Prompted, demonstrations: Sequence[Prompted], settings: Demonstrations, *, as_chat: bool
) -> Prompted:
    """Return a question with demonstrations before it, and its answer as it was.

    Args:
        question: what is asked.
        demonstrations: solved rows, in the order in which they are read.
        settings: instruction and separator.
        as_chat: demonstrations become earlier turns; the instruction begins the first of the user's.
    """
    if as_chat:
        return replace(question, prompt="", messages=_turns(question, demonstrations, settings.instruction))
    from multitune.mixing.encoding import plain_prompt, plain_text

    parts = [*(plain_text(one) for one in demonstrations), plain_prompt(question)]
    head = f"{settings.instruction}\n\n" if settings.instruction else ""
    return replace(question, prompt=head + settings.separator.join(parts), messages=())


def digest_of(rows: Sequence[Prompted]) -> str:
    """Return 16 hexadecimal digits that tell what was asked, in which order."""
    from multitune.mixing.encoding import plain_prompt

    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        text = plain_prompt(row).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()


def _turns(question: Prompted, demonstrations: Sequence[Prompted], instruction: str) -> tuple[Message, ...]:
    """Return the chat: a system turn of the question's own first, then every demonstration's turns, then the question.

    Demonstrations leave their system turns away: most templates allow one, at the beginning.
    """
    from multitune.mixing.chats import conversation

    own = [Message(turn["role"], turn["content"]) for turn in conversation(question)]
    system = [turn for turn in own[:1] if turn.role == "system"]
    turns = [
        Message(turn["role"], turn["content"])
        for one in demonstrations
        for turn in conversation(one)
        if turn["role"] != "system"
    ]
    turns += own[len(system) :]
    if instruction:
        turns[0] = Message(turns[0].role, f"{instruction}\n\n{turns[0].content}")
    return (*system, *turns)


def fitting(
    backbone: Backbone,
    task: Task,
    rows: Sequence[Prompted],
    drawn: Sequence[Sequence[Prompted]],
    settings: Demonstrations,
) -> list[tuple[Prompted, int]]:
    """Return every question with the most of its demonstrations that fit, the last ones, and how many those are.

    Raises:
        MultituneError: a question does not fit the model's positions even by itself.
    """
    from multitune.decoding.prompt_batches import context_length
    from multitune.mixing.chats import uses_chat_template
    from multitune.mixing.encoding import encode_prompts

    tokenizer, form = backbone.tokenizer, backbone.form
    as_chat = [uses_chat_template(row, task.chat, tokenizer) for row in rows]
    room = context_length(backbone.model)
    answer = [0] * len(rows) if form == "seq2seq" else answer_tokens(backbone, task, rows)

    def packed(i: int, kept: int) -> Prompted:
        return pack(rows[i], drawn[i][len(drawn[i]) - kept :], settings, as_chat=as_chat[i])

    def fits(one: Prompted, i: int) -> bool:
        return len(encode_prompts([one], tokenizer, form, task)[0]) + answer[i] <= room

    whole = [packed(i, len(drawn[i])) for i in range(len(rows))]
    lengths = [len(ids) for ids in encode_prompts(whole, tokenizer, form, task)]
    found = []
    for i, length in enumerate(lengths):
        if length + answer[i] <= room:
            found.append((whole[i], len(drawn[i])))
            continue
        if not fits(packed(i, 0), i):
            raise MultituneError(
                f"This row alone does not fit the model's {room} positions beside an answer of {answer[i]} tokens.",
                rows[i].example.where,
                "Shorten its prompt, lower max_new_tokens, or take a model with more positions.",
            )
        few, many = 0, len(drawn[i])  # few fit, many do not: more demonstrations never make a prompt shorter
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if fits(packed(i, middle), i) else (few, middle)
        found.append((packed(i, few), few))
    return found


def answer_tokens(backbone: Backbone, task: Task, rows: Sequence[Prompted]) -> list[int]:
    """Return how many positions a causal model's answer to every row may take."""
    from multitune.mixing.chats import ids_of
    from multitune.scoring.choosing import choice_tokens
    from multitune.tasks.templates import compile_template

    if task.kind not in ("label", "choose"):
        return [task.max_new_tokens] * len(rows)
    longest = [max(map(len, choices)) for choices in choice_tokens(backbone, task, rows)]
    if task.continuation is None:
        return longest
    write = compile_template(task.continuation, f"tasks.{task.name}.continuation")
    after = ids_of([f" {write(row.example.fields)}" for row in rows], backbone.tokenizer)
    return [choice + len(tokens) for choice, tokens in zip(longest, after, strict=True)]


def _say_dropped(task: Task, shots: int, drawn: Sequence[int], used: Sequence[int]) -> None:
    if short := sum(count < shots for count in drawn):
        logger.warning(
            "%s: %d of %d rows have fewer than %d demonstrations to draw.", task.name, short, len(drawn), shots
        )
    fewer = [(have, kept) for have, kept in zip(drawn, used, strict=True) if kept < have]
    if fewer:
        logger.warning(
            "%s: %d demonstrations before %d of %d rows do not fit the model's positions and were dropped.",
            task.name,
            sum(have - kept for have, kept in fewer),
            len(fewer),
            len(drawn),
        )
