"""Learned keys and values before those of an attention, whatever the architecture and however rows are packed.

An attention of transformers asks a table for the function that attends. Ours puts the learned keys and values behind
the text's, makes every query see them, and hands all to the function that the model uses itself. They take no positions
and stay out of the cache, so that neither positions nor lengths nor packed rows change.

Shape legend: ``B`` rows, ``H`` heads of keys, ``Q`` queries, ``K`` keys of the text, ``l`` learned keys, ``D`` width of
a head.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "multitune_prefixes"
CARRIER = "carrier_of_prefixes"
"""Attribute of an attention: what holds its keys and values, and the config that it shares with the model."""

WITH_DENSE_MASKS = ("sdpa", "eager")


class CarriesPrefixes(Protocol):
    """What holds the learned keys and values of one attention."""

    def prefixes(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Return keys and values [l, H D], and logarithms of weights [B, Q, 1] or None, of every adapter that acts."""


def carry_prefixes(attention: Any, carrier: CarriesPrefixes) -> None:
    """Let an attention of transformers read the keys and values of a carrier.

    Raises:
        ValueError: it computes attention by itself, or without a mask that could be extended.
    """
    kind = type(attention)
    config = getattr(attention, "config", None)
    if config is None or not hasattr(sys.modules[kind.__module__], "ALL_ATTENTION_FUNCTIONS"):
        raise ValueError(f"{kind.__name__} computes attention by itself, and takes no keys that are learned")
    _refuse(config)
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attend)
    attention.__dict__[CARRIER] = carrier, config
    attention.config = copy.copy(config)
    attention.config._attn_implementation_internal = IMPLEMENTATION


def end_prefixes(model: nn.Module) -> None:
    """Give all attentions of a model back as they were."""
    for module in model.modules():
        if CARRIER in module.__dict__:
            module.config = module.__dict__.pop(CARRIER)[1]


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend to keys [B, H, K, D] and to those of the module's carrier, by the model's own function."""
    carrier, config = module.__dict__[CARRIER]
    attention = _function(module, config)
    found = carrier.prefixes()
    if not found:
        output: tuple[Tensor, Tensor | None] = attention(module, query, key, value, attention_mask, **kwargs)
        return output
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    mask = _additive(attention_mask, query, key, causal=causal and query.shape[2] > 1)
    for keys_lE, values_lE, weight_BQ1 in found:
        key = torch.cat([key, _heads(keys_lE, key)], dim=2)
        value = torch.cat([value, _heads(values_lE, value)], dim=2)
        length = len(keys_lE)
        more = mask.new_zeros(1, 1, 1, length) if weight_BQ1 is None else weight_BQ1[:, None].to(mask.dtype)
        rows = max(len(mask), len(more))
        mask = torch.cat(
            [mask.expand(rows, -1, -1, -1), more.expand(rows, mask.shape[1], mask.shape[2], length)], dim=3
        )
        if (bias := kwargs.get("position_bias")) is not None:
            kwargs["position_bias"] = nn.functional.pad(bias, (0, length))
    output = attention(module, query, key, value, mask, **kwargs)
    return output


def _refuse(config: Any) -> None:
    if (config._attn_implementation or "eager") not in WITH_DENSE_MASKS:
        raise ValueError(f"learned keys need attention by sdpa or eager, not {config._attn_implementation}")


def _function(module: Any, config: Any) -> Any:
    """Return the function by which the model itself attends."""
    _refuse(config)
    own: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation or "eager", own)


def _heads(prefix_lE: Tensor, like: Tensor) -> Tensor:
    """Return [B, H, l, D] of [l, H D], as many rows as the text's."""
    rows, heads, _, width = like.shape
    split = prefix_lE.to(like.dtype).unflatten(1, (heads, width)).transpose(0, 1)
    return split[None].expand(rows, -1, -1, -1)


def _additive(mask: Tensor | None, query: Tensor, key: Tensor, *, causal: bool) -> Tensor:
    """Return what is added to the scores, [B or 1, H or 1, Q, K]: 0 where a query sees a key."""
    queries, keys = query.shape[2], key.shape[2]
    never = torch.finfo(query.dtype).min
    if mask is None:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        mask = (seen.tril() if causal else seen)[None, None]
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, never)
    return mask[..., :keys].expand(-1, -1, queries, -1)
