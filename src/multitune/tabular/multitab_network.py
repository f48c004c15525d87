"""MultiTab-Net: a row becomes one token per target and one per feature; what they may attend to is masked.

Source: MultiTab, AAAI 2026 (vol. 40, no. 30, pp. 25499-25507). Shape legend: ``B`` rows, ``T`` task tokens, ``d``
features, ``S = T + d`` tokens (task tokens first), ``e`` width of a token, ``E`` width of a layer, ``K`` context rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multitune.tabular.network_layers import (
    FeatureTokeniser,
    Initialisation,
    NetworkTarget,
    Towers,
    fill_affine,
    linear,
)

Mask = Literal["none", "TxT", "FxT", "FxT_TxT"]
InterSample = Literal["off", "batch"]

MASKS: tuple[Mask, ...] = ("none", "TxT", "FxT", "FxT_TxT")
CACHED_FLOATS = 2_500_000  # of a layer's widest activations that a processor's cache holds beside the others

INTER_SAMPLE: tuple[InterSample, ...] = ("off", "batch")


def blocked_attention(mask: Mask, tasks: int, features: int) -> Tensor:
    """Return which tokens (rows) may not look at which (columns), (S, S), True where blocked.

    "TxT": a task token sees no other task token. "FxT": a feature sees no task token. "FxT_TxT": both. Task tokens
    always see themselves and all features, features always see features.
    """
    is_task_S = torch.arange(tasks + features) < tasks
    blocked_SS = torch.zeros(len(is_task_S), len(is_task_S), dtype=torch.bool)
    if mask in ("TxT", "FxT_TxT"):
        blocked_SS |= is_task_S[:, None] & is_task_S[None, :] & ~torch.eye(len(is_task_S), dtype=torch.bool)
    if mask in ("FxT", "FxT_TxT"):
        blocked_SS |= ~is_task_S[:, None] & is_task_S[None, :]
    return blocked_SS


class EncoderLayer(nn.Module):
    """Enc_E: h' = h + Drop(MHA(LN1(h))); out = h' + W2 Drop(GELU(W1 LN2(h') + b1)) + b2.

    Args:
        width: E, a multiple of heads.
        ff: width of the feed-forward layer.
        ff_dropout: after attention and inside the feed-forward layer.
        att_dropout: on the attention weights.
    """

    def __init__(
        self, width: int, heads: int, ff: int, ff_dropout: float, att_dropout: float, initialisation: Initialisation
    ) -> None:
        super().__init__()
        self.heads, self.att_dropout = heads, att_dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        self.out = linear(width, width, initialisation)
        nn.init.zeros_(self.out.bias)
        self.feed_forward = nn.Sequential(
            linear(width, ff, initialisation), nn.GELU(), nn.Dropout(ff_dropout), linear(ff, width, initialisation)
        )
        self.dropout = nn.Dropout(ff_dropout)

    def forward(self, h_BSE: Tensor, allowed_QS: Tensor | None, queries: int | None = None) -> Tensor:
        """Return the layer's output for the first ``queries`` tokens, for all when None: (B, Q, E).

        What the others would become is computed by nobody who does not read it: the last layer of a network is asked
        for the task tokens only.
        """
        normed_BSE = self.norm1(h_BSE)
        query_BQE = normed_BSE[:, :queries]
        width = h_BSE.shape[-1]
        weight_q, weight_kv = self.qkv.weight.split((width, 2 * width))
        bias_q, bias_kv = self.qkv.bias.split((width, 2 * width))
        q = self._split(F.linear(query_BQE, weight_q, bias_q))
        k, v = map(self._split, F.linear(normed_BSE, weight_kv, bias_kv).chunk(2, dim=-1))
        dropout = self.att_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed_QS, dropout_p=dropout)
        return self._finish(h_BSE[:, :queries], mixed.transpose(1, 2).flatten(2))

    def attend_context(self, h_BE: Tensor, context_KE: Tensor) -> Tensor:
        """Return the layer's output for rows that each attend to themselves and to the context rows: (B, E)."""
        rows, context = self.norm1(h_BE), self.norm1(context_KE)
        q, k, v = (self._split(part.unsqueeze(0))[0] for part in self.qkv(rows).chunk(3, dim=-1))
        k_context, v_context = (self._split(part.unsqueeze(0))[0] for part in self.qkv(context).chunk(3, dim=-1)[1:])
        scores = torch.cat((q @ k_context.transpose(1, 2), (q * k).sum(-1, keepdim=True)), dim=-1)
        attention = F.softmax(scores / q.shape[-1] ** 0.5, dim=-1)
        mixed = attention[..., :-1] @ v_context + attention[..., -1:] * v
        return self._finish(h_BE, mixed.transpose(0, 1).flatten(1))

    def _split(self, x_BSE: Tensor) -> Tensor:
        return x_BSE.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _finish(self, h: Tensor, mixed: Tensor) -> Tensor:
        h = h + self.dropout(self.out(mixed))
        finished: Tensor = h + self.feed_forward(self.norm2(h))
        return finished


@dataclass(frozen=True)
class NetworkShape:
    """The size of a MultiTab-Net; the defaults are the paper's for ACS Income.

    Attributes:
        multi_token: a token per target; False gives all targets one token.
        inter_sample: "batch" lets the rows of a batch attend to each other after every layer over tokens.
    """

    blocks: int = 1
    heads: int = 4
    embed_dim: int = 16
    ff_dim: int = 256
    tower: tuple[int, ...] = (64,)
    mask: Mask = "TxT"
    multi_token: bool = True
    inter_sample: InterSample = "off"
    ff_dropout: float = 0.0
    att_dropout: float = 0.0
    initialisation: Initialisation = "paper"


class MultiTabNetwork(nn.Module):
    """The network: (B, numeric) and (B, categorical) -> (B, O), the targets' logits and values side by side.

    With ``inter_sample="batch"`` a row's output depends on the rows beside it in training; give ``context`` (see
    ``encode_context``) to let every row attend to fixed rows and itself instead, so that it depends on nothing else.
    """

    allowed_SS: Tensor | None
    rows_at_once: int | None  # that a processor computes fastest; None where the rows of a batch see each other

    def __init__(
        self, numeric: int, cardinalities: Sequence[int], targets: Sequence[NetworkTarget], shape: NetworkShape
    ) -> None:
        super().__init__()
        self.shape = shape
        self.task_tokens = len(targets) if shape.multi_token else 1
        self.tokeniser = FeatureTokeniser(numeric, cardinalities, shape.embed_dim, shape.initialisation)
        # weight + bias, as a Linear(1, e) on a constant 1 has them: two parameters of one sum, at twice the rate
        self.task_weight_Te = nn.Parameter(torch.empty(self.task_tokens, shape.embed_dim))
        self.task_bias_Te = nn.Parameter(torch.empty(self.task_tokens, shape.embed_dim))
        fill_affine(self.task_weight_Te, self.task_bias_Te, 1, shape.initialisation)
        self.dropout = nn.Dropout(shape.ff_dropout)
        tokens = self.task_tokens + numeric + len(cardinalities)
        # the last layer is as wide for the task tokens alone
        widest = tokens * max(4 * shape.embed_dim, shape.ff_dim if shape.blocks > 1 else 0)
        self.rows_at_once = max(16, CACHED_FLOATS // widest) if shape.inter_sample == "off" else None

        def layers(width: int) -> nn.ModuleList:
            return nn.ModuleList(
                EncoderLayer(
                    width, shape.heads, shape.ff_dim, shape.ff_dropout, shape.att_dropout, shape.initialisation
                )
                for _ in range(shape.blocks)
            )

        self.over_tokens = layers(shape.embed_dim)
        self.over_rows = layers(tokens * shape.embed_dim) if shape.inter_sample == "batch" else nn.ModuleList()
        self.towers = Towers(targets, shape.embed_dim, shape.tower, shape.ff_dropout, shape.initialisation)
        self.target_count = len(targets)
        blocked_SS = blocked_attention(shape.mask, self.task_tokens, numeric + len(cardinalities))
        allowed_SS = ~blocked_SS if bool(blocked_SS.any()) else None
        self.register_buffer("allowed_SS", allowed_SS, persistent=False)

    def forward(self, numeric_BN: Tensor, code_BC: Tensor, context: Sequence[Tensor] = ()) -> Tensor:
        h_BSe = self.tokens(numeric_BN, code_BC)
        task_BTe = self._encode(h_BSe, context, None)[:, : self.task_tokens]
        outputs: Tensor = self.towers(task_BTe.expand(-1, self.target_count, -1))
        return outputs

    def tokens(self, numeric_BN: Tensor, code_BC: Tensor) -> Tensor:
        """Return the token matrix Z, (B, S, e), task tokens first."""
        feature_Bde = self.tokeniser(numeric_BN, code_BC)
        task_Te = self.task_weight_Te + self.task_bias_Te
        joined = torch.cat((task_Te.expand(len(feature_Bde), -1, -1), feature_Bde), dim=1)
        dropped: Tensor = self.dropout(joined)
        return dropped

    def encode_context(self, numeric_KN: Tensor, code_KC: Tensor) -> list[Tensor]:
        """Return the context rows as every layer over rows sees them, each (K, S e)."""
        seen: list[Tensor] = []
        self._encode(self.tokens(numeric_KN, code_KC), (), seen)
        return seen

    def _encode(self, h_BSe: Tensor, context: Sequence[Tensor], seen: list[Tensor] | None) -> Tensor:
        for block, over_tokens in enumerate(self.over_tokens):
            last = block + 1 == len(self.over_tokens) and not self.over_rows
            queries = self.task_tokens if last else None
            allowed_QS = None if self.allowed_SS is None else self.allowed_SS[:queries]
            h_BSe = over_tokens(h_BSe, allowed_QS, queries)
            if self.over_rows:
                layer, flat_BE = self._over_rows(block), h_BSe.flatten(1)
                if seen is not None:
                    seen.append(flat_BE)
                mixed_BE = layer.attend_context(flat_BE, context[block]) if context else layer(flat_BE[None], None)[0]
                h_BSe = mixed_BE.view_as(h_BSe)
        return h_BSe

    def _over_rows(self, block: int) -> EncoderLayer:
        layer = self.over_rows[block]
        assert isinstance(layer, EncoderLayer)
        return layer
