"""Prompts are read once, and what follows them goes on from there; what all prompts begin with is read once for all.

Shape legend: ``B`` prompts, ``P`` tokens of a prompt, ``N`` continuations, ``L`` tokens of each, ``D`` width, ``V``
words.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderCache

from multitune.decoding.logit_fusion import LogitFusion
from multitune.decoding.prompt_batches import pad
from multitune.errors import MultituneError
from multitune.models.packed import has_prompts_in_hooks, is_prompt_learning, without_adapters

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

SHORTEST_PREFIX = 16
"""Prompts that begin with at least so many equal tokens read them once together; fewer are not worth a pass."""


def shares_prompts(model: nn.Module) -> bool:
    """Whether a prompt's state can be computed once and copied for every choice."""
    inner = without_adapters(model)
    has_cache = "past_key_values" in inspect.signature(inner.forward).parameters
    return has_cache and not getattr(inner, "_is_stateful", False) and not is_prompt_learning(model)


def shares_prefixes(backbone: Backbone) -> bool:
    """Whether what many prompts begin with can be computed once for all of them.

    Not where the encoder reads both ways, where attention slides over a window (padding inside a text would move it),
    or where a fusion keeps a trace of whole texts; nor where a prompt is read in a hook, of whose vectors in the cache
    ``generate`` does not know.
    """
    if has_prompts_in_hooks(backbone.model):
        return False
    model = without_adapters(backbone.model)
    slides = getattr(model.config, "sliding_window", None) is not None
    whole = isinstance(backbone.model, LogitFusion) or backbone.form != "causal"
    return shares_prompts(backbone.model) and not slides and not whole


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
    """Return groups of prompts that begin alike: (the tokens they all begin with, indices of the prompts).

    Every index occurs once. A prefix leaves every prompt at least one token; it is [] for prompts on their own, and for
    those that share fewer than SHORTEST_PREFIX tokens.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        beginning = tuple(prompt[:SHORTEST_PREFIX]) if len(prompt) > SHORTEST_PREFIX else ()
        groups.setdefault(beginning, []).append(i)
    alone = groups.pop((), [])
    found = []
    for members in groups.values():
        if len(members) == 1:
            alone += members
            continue
        texts = sorted(list(prompts[i]) for i in members)  # what the first and the last begin with, all begin with
        shortest = min(map(len, texts))
        equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(texts[0], texts[-1], strict=False)))
        found.append((texts[0][: min(equal, shortest - 1)], members))
    return found + ([([], sorted(alone))] if alone else [])


@dataclass(frozen=True)
class PromptPass:
    """What reading a batch of prompts leaves.

    Attributes:
        logits_BV: of the token that follows the prompt.
        cache: keys and values of every layer.
        attention_mask: [B, P].
        encoder_states: [B, P, D] of an encoder-decoder, else None.
    """

    logits_BV: Tensor
    cache: Any
    attention_mask: Tensor
    encoder_states: Tensor | None


def read_prompts(backbone: Backbone, prompts: list[list[int]], prefix: PromptPass | None = None) -> PromptPass:
    """Read a batch of prompts.

    Args:
        backbone: a causal or encoder-decoder LM.
        prompts: token ids; where a prefix is given, of what follows it, at least one each.
        prefix: a pass of one row over what all of them begin with; may be shared by many batches.
    """
    model = backbone.model
    device = next(model.parameters()).device
    if backbone.form == "seq2seq":
        input_ids, mask = pad(prompts, backbone.tokenizer.pad_token_id, "right", device)
        start = torch.full((len(prompts), 1), decoder_start(model), device=device)
        output = model(input_ids=input_ids, attention_mask=mask, decoder_input_ids=start, use_cache=True)
        return PromptPass(output.logits[:, -1], output.past_key_values, mask, output.encoder_last_hidden_state)
    # Padded on the left, so that every prompt ends in the last column and its choices follow without a gap.
    input_ids, mask = pad(prompts, backbone.tokenizer.pad_token_id, "left", device)
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": True}
    if prefix is not None:
        every = torch.zeros(len(prompts), dtype=torch.long, device=device)
        inputs["past_key_values"] = select_rows(prefix.cache, every)
        mask = torch.cat([prefix.attention_mask[every], mask], dim=1)
    inputs["attention_mask"] = mask
    if takes(model, "position_ids"):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    if takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    output = model(**inputs)
    return PromptPass(output.logits[:, -1], output.past_key_values, mask, None)


def after_prefix(begun: PromptPass, prefix: list[int], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """Return what ``generate`` takes to go on after a prefix that has been read: ids and mask of the whole, the cache.

    Args:
        begun: the pass over the prefix.
        prefix: its tokens.
        input_ids: what follows it, padded on the left, [B, S].
        attention_mask: of that, [B, S].
    """
    every = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
    before = torch.tensor(prefix, device=input_ids.device).expand(len(input_ids), -1)
    return {
        "input_ids": torch.cat([before, input_ids], dim=1),
        "attention_mask": torch.cat([begun.attention_mask[every], attention_mask], dim=1),
        "past_key_values": select_rows(begun.cache, every),
    }


def read_on(backbone: Backbone, read: PromptPass, rows: Tensor, tokens_NL: Tensor) -> Tensor:
    """Return the logits [N, L, V] after each token of continuations of the given rows of a prompt pass.

    Continuations are padded on the right: what follows a token cannot change it, so the padding needs no mask.
    """
    model = backbone.model
    mask = read.attention_mask[rows]
    inputs: dict[str, Any] = {"past_key_values": select_rows(read.cache, rows), "use_cache": True}
    if read.encoder_states is not None:
        inputs |= {"encoder_outputs": (read.encoder_states[rows],), "attention_mask": mask}
        return model(decoder_input_ids=tokens_NL, **inputs).logits
    inputs["attention_mask"] = torch.cat([mask, torch.ones_like(tokens_NL)], dim=1)
    if takes(model, "position_ids"):
        inputs["position_ids"] = mask.sum(1, keepdim=True) + torch.arange(tokens_NL.shape[1], device=mask.device)
    return model(input_ids=tokens_NL, **inputs).logits


def select_rows(cache: Any, rows: Tensor) -> Any:
    """Return a new cache of the given rows (repeats allowed); the given one stays as it is."""
    chosen = copy.copy(cache)
    if isinstance(cache, EncoderDecoderCache):
        chosen.self_attention_cache = select_rows(cache.self_attention_cache, rows)
        chosen.cross_attention_cache = select_rows(cache.cross_attention_cache, rows)
        chosen.is_updated = dict(cache.is_updated)
        return chosen
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def decoder_start(model: nn.Module) -> int:
    """Return the token with which an encoder-decoder's decoder begins."""
    inner = without_adapters(model)
    for config in (inner.generation_config, inner.config):
        if getattr(config, "decoder_start_token_id", None) is not None:
            return int(config.decoder_start_token_id)
    raise MultituneError(
        "The model does not say with which token its decoder begins.",
        "decoder_start_token_id in config.json",
        "Set decoder_start_token_id in the model's config.json.",
    )


def takes(model: nn.Module, argument: str) -> bool:
    """Whether a model's forward has an argument of this name."""
    return argument in inspect.signature(without_adapters(model).forward).parameters
