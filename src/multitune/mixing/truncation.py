"""What stays of an example that is longer than a row.

A causal example keeps its target and the end of its prompt; an encoder-decoder keeps the end of its prompt and the
beginning of its target; an encoder, which usually reads a document, keeps the beginning. What the tokenizer puts before
and after a text stays where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from multitune.mixing.chats import IGNORED

if TYPE_CHECKING:
    from multitune.tasks.task import Form

Affixes = tuple[list[int], list[int]]


def truncate(
    ids: list[int], labels: list[int], form: Form, max_length: int, affixes: Affixes
) -> tuple[list[int], list[int]]:
    """Ids and labels of at most ``max_length`` tokens each.

    Args:
        ids: token ids of an encoded example.
        labels: its labels; as many as ids for causal.
        form: what sort of backbone reads it.
        max_length: tokens that fit, at least 2.
        affixes: what the tokenizer puts before and after a text, or after a prompt.
    """
    if form == "causal":
        return truncate_causal(ids, labels, max_length, affixes[0])
    before = affixes[0] if ids[: len(affixes[0])] == affixes[0] else []
    after = affixes[1] if ids[len(ids) - len(affixes[1]) :] == affixes[1] else []
    body = ids[len(before) : len(ids) - len(after)]
    room = max(1, max_length - len(before) - len(after))
    if form == "encoder":
        return before + body[:room] + after, labels
    return before + body[-room:] + after, labels[:max_length]


def truncate_causal(
    ids: list[int], labels: list[int], max_length: int, before: list[int]
) -> tuple[list[int], list[int]]:
    """Cut on the left of the last target; on its right only where it does not fit by itself.

    The tokens that the tokenizer puts before a text (bos) are kept, and so is one token of context, which the target's
    first token is predicted from.
    """
    if len(ids) <= max_length:
        return ids, labels
    if ids[: len(before)] != before or len(before) + 2 > max_length:
        before = []
    end = len(labels)
    target = end - next((n for n, label in enumerate(reversed(labels)) if label == IGNORED), end)
    start = min(end - (max_length - len(before)), target - 1)
    kept = slice(start, start + max_length - len(before))
    kept_labels = [IGNORED] * len(before) + labels[kept]
    kept_labels[len(before)] = IGNORED  # what it was predicted from is cut off
    return before + ids[kept], kept_labels
