"""The models that a fusion reads: each with its share of the cache, its own words and what it reads before a prompt.

LoRA experts over one small base are rows of one batch: the base once, and a row per adapter beside the row of the base
alone (peft's ``adapter_names``). One copy of the base is in memory and one forward pass serves all.

Shape legend: ``B`` rows, ``R`` roles of one module, ``S`` tokens, ``V`` words.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from multitune.decoding.shared_vocabulary import SharedVocabulary, shared_vocabulary
from multitune.errors import MultituneError
from multitune.mixing.encoding import prompt_affixes
from multitune.models.packed import without_adapters
from multitune.models.positions import usable_positions

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

BASE_ROWS = "__base__"
"""What peft calls rows that no adapter touches."""


class Role(nn.Module):
    """One module and the distributions that it gives: its own, or those of several adapters over it.

    Args:
        model: a causal language model, or a PeftModel around one.
        adapters: names of adapters that the rows are read with, None for the base alone; empty: the module as it is.
        vocabulary: the words that it shares with the large model.
        prefix: tokens (the large model's ids) that stand before every prompt, for this role alone.
        drops_first: whether the prompt's first token is left out, because the prefix begins with the same one.
    """

    ids_V: Tensor | None
    prefix_P: Tensor

    def __init__(
        self,
        model: nn.Module,
        vocabulary: SharedVocabulary,
        *,
        adapters: Sequence[str | None] = (),
        prefix: Sequence[int] = (),
        drops_first: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter_names = [BASE_ROWS if name is None else name for name in adapters]
        self.words = vocabulary.words
        self.drops_first = drops_first
        self.register_buffer("ids_V", vocabulary.ids_V, persistent=False)
        self.register_buffer("prefix_P", torch.tensor(list(prefix), dtype=torch.long), persistent=False)
        parameters = inspect.signature(without_adapters(model).forward).parameters
        self.takes_positions = "position_ids" in parameters
        self.keeps_logits = "logits_to_keep" in parameters

        positions = usable_positions(model)
        self.positions = None if positions is None else positions - len(prefix)

    @property
    def rows(self) -> int:
        """Rows that this role reads for every row of the batch."""
        return max(1, len(self.adapter_names))

    def new_cache(self) -> DynamicCache:
        """Return an empty cache with the model's kinds of layers."""
        return DynamicCache(config=without_adapters(self.model).config)

    def forward(
        self, input_ids_BS: Tensor, mask_BS: Tensor, cache: DynamicCache | None, started: bool, keep: int
    ) -> Tensor:
        """Return logits over the shared words, [B, R, keep, V].

        Args:
            input_ids_BS: the large model's ids of tokens that are not in the cache.
            mask_BS: 1 for every token that is no padding, those in the cache first.
            cache: of this role; grows. None reads all at once.
            started: whether the cache holds something.
            keep: so many positions at the end; 0 for all.
        """
        device = next(self.model.parameters()).device
        input_ids_BS, mask_BS = input_ids_BS.to(device), mask_BS.to(device)
        keep = keep or input_ids_BS.shape[1]
        input_ids_BS, mask_BS = self._after_prefix(input_ids_BS, mask_BS, started)
        if self.ids_V is not None:
            input_ids_BS = self.ids_V[input_ids_BS]
        inputs: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache}
        if self.adapter_names:
            inputs["adapter_names"] = self.adapter_names * len(input_ids_BS)
            input_ids_BS, mask_BS = (one.repeat_interleave(self.rows, 0) for one in (input_ids_BS, mask_BS))
        if self.takes_positions:
            positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
            inputs["position_ids"] = positions_BS[:, -input_ids_BS.shape[1] :]
        if self.keeps_logits:
            inputs["logits_to_keep"] = keep
        output = self.model(input_ids=input_ids_BS, attention_mask=mask_BS, **inputs)
        logits_NSV = output.logits[:, -keep:]
        words = slice(self.words) if self.ids_V is None else self.ids_V
        return logits_NSV[..., words].unflatten(0, (-1, self.rows))

    def _after_prefix(self, input_ids_BS: Tensor, mask_BS: Tensor, started: bool) -> tuple[Tensor, Tensor]:
        """Put the prefix in front, before the padding: what is masked takes no position, so both are read as one."""
        if not len(self.prefix_P):
            return input_ids_BS, mask_BS
        prefix_BP = self.prefix_P.expand(len(input_ids_BS), -1)
        if self.drops_first:
            mask_BS = mask_BS.scatter(1, mask_BS.argmax(1, keepdim=True), 0)
        if not started:
            input_ids_BS = torch.cat([prefix_BP, input_ids_BS], dim=1)
        return input_ids_BS, torch.cat([torch.ones_like(prefix_BP), mask_BS], dim=1)


def role_of(backbone: Backbone, large: Backbone, prompt: str, told: str, adapters: Sequence[str | None] = ()) -> Role:
    """Return the role of a model beside a large one.

    Args:
        backbone: the model.
        large: whose ids are read.
        prompt: text that this role alone reads before every prompt; "" for none.
        told: what it is, for errors.
        adapters: as for `Role`.

    Raises:
        MultituneError: words that are not shared, or a prompt that leaves no position.
    """
    width, large_width = (one.model.get_input_embeddings().weight.shape[0] for one in (backbone, large))
    vocabulary = shared_vocabulary(large.tokenizer, backbone.tokenizer, (large_width, width), told)
    before, _ = prompt_affixes(large.tokenizer, "causal")
    prefix = [*before, *large.tokenizer(prompt, add_special_tokens=False)["input_ids"]] if prompt else []
    role = Role(backbone.model, vocabulary, adapters=adapters, prefix=prefix, drops_first=bool(before))
    if role.positions is not None and role.positions < 2:
        raise MultituneError(
            f"The prompt of the {told} has {len(prefix)} tokens, which leave no position for anything else.",
            "large_prompt" if backbone is large else "small_prompt",
            "Shorten it.",
        )
    return role


class FusionCache(Cache):
    """The layers of all roles, one after the other; several rows of a role stand together for a row of the batch."""

    def __init__(self, roles: Sequence[Role]) -> None:
        caches = [role.new_cache() for role in roles]
        self.spans = list(pairwise(accumulate((len(cache.layers) for cache in caches), initial=0)))
        self.rows = [role.rows for role in roles]
        self.prefix = len(roles[0].prefix_P)
        super().__init__(layers=[layer for cache in caches for layer in cache.layers])

    def of(self, place: int) -> DynamicCache:
        """Return the cache of one role, which shares its layers with this one."""
        part = DynamicCache()
        part.layers = self.layers[slice(*self.spans[place])]
        part.layer_class_to_replicate = None
        return part

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Return how many tokens of the sequence, the large model's own prefix aside, are in the cache."""
        return max(0, super().get_seq_length(layer_idx or 0) - self.prefix)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows of the batch, in this order; repeats are allowed."""
        for rows, span in zip(self.rows, self.spans, strict=True):
            chosen = (indices[:, None] * rows + torch.arange(rows, device=indices.device)).flatten()
            for layer in self.layers[slice(*span)]:
                layer.batch_select_indices(chosen)  # type: ignore[union-attr]  # roles have attention layers

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given rows, as beam search asks for it."""
        self.batch_select_indices(beam_idx)
