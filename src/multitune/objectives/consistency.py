"""How far two passes over one batch disagree, token by token.

Shape legend: ``D`` width, ``V`` vocabulary, ``N`` labelled tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multitune.objectives.token_loss import CHUNK_ELEMENTS


def symmetric_divergence(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    """Return (KL(p || q) + KL(q || p)) / 2 of the distributions of two rows of logits: float32 [N].

    Logits of -inf, at places that a row has not, take no part; they must be the same places in both.
    """
    absent = torch.isneginf(first_NV)
    p_NV, q_NV = (torch.log_softmax(logits.float(), dim=-1).masked_fill(absent, 0) for logits in (first_NV, second_NV))
    terms_NV = (p_NV.exp() - q_NV.exp()) * (p_NV - q_NV)
    return terms_NV.sum(dim=-1) / 2


def token_divergence(first_ND: Tensor, second_ND: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int) -> Tensor:
    """Return the symmetric divergence of what two passes predict at every labelled position: float32 [N].

    Args:
        first_ND, second_ND: last hidden states of the passes.
        head: maps hidden states [n, D] to logits [n, V].
        vocabulary: V, which bounds the memory of one chunk.
    """

    def divergence(first_nD: Tensor, second_nD: Tensor) -> Tensor:
        return symmetric_divergence(head(first_nD), head(second_nD))

    rows = max(1, CHUNK_ELEMENTS // (2 * vocabulary))
    if len(first_ND) <= rows:
        return divergence(first_ND, second_ND)
    chunks = zip(first_ND.split(rows), second_ND.split(rows), strict=True)
    return torch.cat([checkpoint(divergence, *chunk, use_reentrant=False) for chunk in chunks])
