"""Prompts of many lengths as rectangular batches that fit the model's positions and a budget of tokens.

Shape legend: ``B`` rows, ``S`` tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from multitune.models.positions import usable_positions

logger = logging.getLogger("multitune.decoding")

# A cached token costs memory but no computing: it counts for a quarter of a token in a batch's budget.
CACHED_TOKEN_COST = 0.25
UNLIMITED = 1 << 30  # positions of models that have no limit (relative positions, ALiBi, state spaces)


def context_length(model: nn.Module) -> int:
    """Return how many tokens fit the model's positions, virtual tokens of an adapter taken off."""
    return usable_positions(model) or UNLIMITED


def fit_prompts(
    prompts: Sequence[Sequence[int]], room: np.ndarray, filler: int, first_token: int | None = None
) -> list[list[int]]:
    """Return prompts of at most ``room`` tokens each, cut on the left; says once how many were cut.

    Args:
        prompts: token ids; an empty one becomes a single ``filler``, because a model must read something.
        room: int [number of prompts], at least 1 each.
        filler: the token that an empty prompt becomes.
        first_token: a token that stays in front of a prompt that began with it (the beginning-of-sequence token,
            which many models lean on).
    """
    fitted, cut = [], 0
    for prompt, limit in zip(prompts, room.tolist(), strict=True):
        if len(prompt) <= limit:
            fitted.append(list(prompt) or [filler])
            continue
        cut += 1
        keeps_first = first_token is not None and prompt[0] == first_token and limit > 1
        fitted.append([prompt[0], *prompt[len(prompt) - limit + 1 :]] if keeps_first else list(prompt[-limit:]))
    if cut:
        logger.warning("%d of %d prompts are longer than the model's positions: cut on the left.", cut, len(prompts))
    return fitted


def batches_by_length(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Return indices in batches of similar length, the longest first so that memory runs out at once or never.

    Every index occurs once. A batch's rows times its longest length stay within the budget, unless it is a single row.

    Args:
        lengths: int [rows], tokens that each row takes in all.
        budget: tokens a batch may take.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def batches_of_one_length(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Return batches as ``batches_by_length`` does, each of rows of exactly one length, so that nothing is padded."""
    same = [np.flatnonzero(lengths == length) for length in np.unique(lengths)[::-1]]
    return [rows[batch] for rows in same for batch in batches_by_length(lengths[rows], budget)]


def cached_cost(tokens: int) -> int:
    """Return what cached tokens count in a batch's budget."""
    return math.ceil(CACHED_TOKEN_COST * tokens)


def pad(rows: Sequence[Sequence[int]], filler: int, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both int64 [B, S], padded on the left or on the right."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), filler, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        span = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, span] = row
        mask[i, span] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
