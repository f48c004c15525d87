"""How many tokens a model has positions for."""

from __future__ import annotations

from typing import Any

from torch import nn

from multitune.models.tuners.task_ids import PROMPTS


def usable_positions(model: Any) -> int | None:
    """Return the length of the longest input in tokens; None where positions are relative or computed without limit.

    RoBERTa and its relatives number positions from ``padding_idx + 1``: the rows of their position table up to there
    belong to padding, and of the 514 that the config of roberta-base names 512 are of use.

    Args:
        model: a transformers model, a PeftModel around one (virtual tokens are taken off, and the
            longest of the prompts of tasks) or an encoder with heads;
            weights are not read.
    """
    adapted = getattr(model, "encoder", model) if hasattr(model, "heads") else model
    plain = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
    positions = getattr(plain.config.get_text_config(), "max_position_embeddings", None)
    if not positions:
        return None
    adapter = getattr(adapted, "active_peft_config", None)
    virtual = getattr(adapter, "num_virtual_tokens", 0)
    virtual += max((len(one) for one in getattr(getattr(plain, PROMPTS, None), "vectors", ())), default=0)
    return int(positions) - _reserved_for_padding(plain) - virtual


def _reserved_for_padding(plain: Any) -> int:
    """Return the leading rows of a learned position table that no token uses."""
    for name, module in plain.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0
