"""Inputs of a model with vectors of a prompt before the text: embeddings, mask, positions and labels, and back again.

Where rows are padded on the left, the prompt stands directly before the row's first token, not before its padding: the
same row then has the same distances between prompt and text under any padding, whatever kind of positions a model has.

Shape legend: ``B`` rows, ``s`` vectors of the prompt, ``n`` tokens of the input, ``d`` width of the embeddings, ``V``
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WITHOUT_LOSS = -100


@dataclass(frozen=True, slots=True)
class PromptedInputs:
    """What a model reads in place of its input; None where nothing was given.

    Attributes:
        inputs_embeds: [B, s + n, d].
        attention_mask: [B, s + n], of the given mask's type; the prompt is always seen.
        position_ids: int64 [B, s + n], the prompt's 0 to s - 1 and the text's s later than it was.
        labels: int64 [B, s + n], -100 at the prompt.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    labels: Tensor | None


def with_prompt(
    prompt: Tensor,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
) -> PromptedInputs:
    """Return the inputs of a decoder, or of an encoder, whose rows have a prompt before their first token.

    The caller's tensors stay as they are, and gradients reach prompt and embeddings. The labels are those of a decoder:
    do not give an encoder-decoder's, whose targets are as long as before. Logits come back by `without_prompt`.

    Args:
        prompt: [s, d] for all rows, or [B, s, d], one per row; cast to the type of the embeddings.
        inputs_embeds: [B, n, d].
        attention_mask: [B, n], 0 on padding, left or right; None: no padding, and the result has no mask either.
        position_ids: integers [B, n] or [1, n]; None: left to the model, which then counts the prompt as any tokens.
        labels: int64 [B, n].

    Raises:
        ValueError: the mask is not one per token, or the prompts are not one for all rows or one per row.
    """
    rows, tokens, _ = inputs_embeds.shape
    if prompt.ndim == 3 and len(prompt) != rows:
        raise ValueError(f"{len(prompt)} prompts cannot stand before {rows} rows")
    if attention_mask is not None and attention_mask.shape != (rows, tokens):
        raise ValueError(f"a mask of shape {tuple(attention_mask.shape)} does not tell which tokens are padding")
    prompt_Bsd = prompt.to(inputs_embeds.dtype).expand(rows, *prompt.shape[-2:])
    start_B = padding_in_front(attention_mask)
    length = prompt.shape[-2]
    mask = position = label = None
    if attention_mask is not None:
        mask = insert(attention_mask.new_ones(rows, length), attention_mask, start_B)
    if position_ids is not None:
        front_1s = torch.arange(length, device=position_ids.device, dtype=position_ids.dtype)[None]
        position = insert(front_1s.expand(rows, -1), length + position_ids.expand(rows, -1), start_B)
    if labels is not None:
        label = insert(labels.new_full((rows, length), WITHOUT_LOSS), labels, start_B)
    return PromptedInputs(insert(prompt_Bsd, inputs_embeds, start_B), mask, position, label)


def mask_with_prompt(attention_mask: Tensor, length: int) -> Tensor:
    """Return the mask [B, s + n] of rows that have a prompt, from that of their tokens [B, n].

    For what follows a prompt that was read before: tokens after a cache (the mask tells of those in the cache too), or
    a decoder that attends to an encoder's states.

    Args:
        attention_mask: [B, n], 0 on padding, left or right.
        length: s.
    """
    front = attention_mask.new_ones(len(attention_mask), length)
    return insert(front, attention_mask, padding_in_front(attention_mask))


def without_prompt(output: Tensor, tokens: int) -> Tensor:
    """Return the logits [B, n, V] (or states) of a prompted forward that belong to the input's own tokens.

    Args:
        output: [B, s + n, V]; or fewer positions, the last ones, where the model kept only these.
        tokens: n, at least 1.
    """
    return output[:, -tokens:]


def padding_in_front(attention_mask: Tensor | None) -> Tensor | None:
    """Return the number of leading zeros of every row, int64 [B]; None where no row has any."""
    if attention_mask is None or not attention_mask.shape[1] or bool((attention_mask[:, 0] != 0).all()):
        return None
    return ((attention_mask != 0).cumsum(1) == 0).sum(1)


def insert(front: Tensor, rest: Tensor, start_B: Tensor | None) -> Tensor:
    """Return [B, s + n, ...]: every row of ``rest`` [B, n, ...] with its row of ``front`` [B, s, ...] put in.

    Args:
        front, rest: alike but for their lengths.
        start_B: the place in ``rest`` of each row, as `padding_in_front` returns it; None: before all.
    """
    both = torch.cat([front, rest], dim=1)
    if start_B is None:
        return both
    length, start_B1 = front.shape[1], start_B[:, None]
    place_1T = torch.arange(both.shape[1], device=both.device)[None]
    source_BT = torch.where(place_1T < start_B1 + length, place_1T - start_B1, place_1T)
    source_BT = torch.where(place_1T < start_B1, place_1T + length, source_BT)
    wide = source_BT.reshape(*source_BT.shape, *[1] * (both.ndim - 2)).expand_as(both)
    return both.gather(1, wide)
