"""Negative log-likelihood at labelled positions only, with the vocabulary projection evaluated in chunks.

Shape legend: ``B`` rows, ``S`` positions, ``D`` width, ``V`` vocabulary, ``N`` labelled tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""Label of a position that carries no loss, as everywhere in transformers."""

CHUNK_ELEMENTS = 2**26
"""Logits computed at once (N * V). Larger batches are chunked, and the chunks recomputed in the backward pass.

In float32 a chunk is 256 MiB, and the peak three times that: its logits, their log-softmax and the gradient. A smaller
chunk would recompute the head for batches of ordinary size, which costs a third of its time."""


def next_token_positions(labels_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the next token is labelled, and that label.

    Args:
        labels_BS: labels aligned with the input (not shifted), IGNORED where there is no loss. The first token of
            every packed example must be IGNORED: its predecessor belongs to another example.

    Returns:
        mask [B, S] (bool; True where the hidden state predicts a labelled token) and labels [N] in row-major order.
    """
    shifted_BS = F.pad(labels_BS[:, 1:], (0, 1), value=IGNORED)
    mask_BS = shifted_BS != IGNORED
    return mask_BS, shifted_BS[mask_BS]


def token_nll(hidden_ND: Tensor, labels_N: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int) -> Tensor:
    """Compute -log p(label) for every labelled position.

    Args:
        hidden_ND: last hidden states at the labelled positions.
        labels_N: the tokens they must predict.
        head: maps hidden states [n, D] to logits [n, V].
        vocabulary: V, which bounds the memory of one chunk.

    Returns:
        float32 tensor [N].
    """

    def nll(hidden_nD: Tensor, labels_n: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden_nD).float(), labels_n, reduction="none")

    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    if len(labels_N) <= rows:
        return nll(hidden_ND, labels_N)
    chunks = zip(hidden_ND.split(rows), labels_N.split(rows), strict=True)
    return torch.cat([checkpoint(nll, hidden_nD, labels_n, use_reentrant=False) for hidden_nD, labels_n in chunks])
