"""A language model out of several: a large one, and what small experts have learned beyond their small base.

At every token the large model's logits are shifted along M_t - M^S, the experts' logits less their base's
(arXiv:2406.15480; `fusion_search` says how far). What comes out is a causal language model: ``generate`` of
transformers works on it, with sampling, stop rules and logits processors applied after the fusion, and so does all
scoring.

Shape legend: ``B`` rows, ``S`` tokens, ``R`` roles of one module, ``T`` experts, ``V`` words.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from multitune.decoding.fusion_checks import check_end_tokens, check_ids, check_models
from multitune.decoding.fusion_config import FusionConfig, check_fusion
from multitune.decoding.fusion_roles import FusionCache, Role, role_of
from multitune.decoding.fusion_search import fuse
from multitune.decoding.fusion_trace import TracedText, traced_texts
from multitune.errors import MultituneError
from multitune.models.packed import without_adapters

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

LOGITS_AT_ONCE = 1 << 26
"""Logits of all roles that are fused in one go: 256 MiB."""


class LogitFusionConfig(PreTrainedConfig):
    """What transformers asks of a model: the sizes of the whole."""

    model_type = "multitune_logit_fusion"
    vocab_size: int = 0
    max_position_embeddings: int | None = None


class LogitFusion(PreTrainedModel, GenerationMixin):
    """A large model that small experts lead, token by token.

    Args:
        large: a causal language model; only its logits are used.
        small: the small base; experts may be LoRA adapters over it.
        experts: tuned versions of the small base, by themselves (a backbone) or as the name of an adapter that
            ``small`` holds.
        config: coefficients, their search, and prompts of the roles.
        names: what traces call the experts; None: their adapters' or models' names.

    Attributes:
        names: of the experts.
        trace: a list that every written text is added to; None keeps nothing.

    Raises:
        MultituneError: settings that cannot be, a model given twice, models that are no causal language models, an
            expert that is no version of the small base, words that are not shared.
    """

    config_class = LogitFusionConfig
    _supports_sdpa = True

    def __init__(
        self,
        large: Backbone,
        small: Backbone,
        experts: Sequence[Backbone | str],
        config: FusionConfig = FusionConfig(),  # noqa: B008 - frozen
        names: Sequence[str] | None = None,
    ) -> None:
        check_fusion(config, len(experts))
        check_models(large, small, experts)
        adapters = [one for one in experts if isinstance(one, str)]
        roles = [role_of(large, large, config.large_prompt, "large model")]
        roles += [role_of(small, large, config.small_prompt, "small base", (None, *adapters) if adapters else ())]
        roles += [role_of(one, large, config.small_prompt, "expert") for one in experts if not isinstance(one, str)]
        words = min(role.words for role in roles)
        inner = without_adapters(large.model)
        check_end_tokens(inner.generation_config, words)
        positions = [role.positions for role in roles if role.positions is not None]
        super().__init__(
            LogitFusionConfig(  # type: ignore[call-arg]
                vocab_size=words,
                max_position_embeddings=min(positions, default=None),
                pad_token_id=large.tokenizer.pad_token_id,
                eos_token_id=inner.generation_config.eos_token_id,
                bos_token_id=inner.generation_config.bos_token_id,
            )
        )
        self.generation_config = copy.deepcopy(inner.generation_config)
        self.fusion = config
        self.names = list(names or (one if isinstance(one, str) else one.config.name for one in experts))
        self.roles = nn.ModuleList(roles)
        alone, shared = iter(range(2, len(roles))), iter(range(1, len(adapters) + 1))
        self._places = [(1, next(shared)) if isinstance(one, str) else (next(alone), 0) for one in experts]
        self.trace: list[TracedText] | None = None
        self._alpha_of_steps: list[Tensor] | None = None
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: FusionCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Return fused logits, float32 [B, logits_to_keep or S, V], and the cache of all roles; without gradients.

        Args:
            input_ids: the large model's ids, int64 [B, S], those in the cache left out.
            attention_mask: 1 for every token that is no padding, on whichever side, [B, cached + S].
            past_key_values: what ``new_cache`` returned; grows.
            use_cache: whether to begin a cache where none is given.
            logits_to_keep: so many positions at the end; 0 for all.
            return_dict: as transformers passes it; the answer is never a tuple.
        """
        if past_key_values is None and use_cache:
            past_key_values = self.new_cache()
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = torch.ones(len(input_ids), cached + input_ids.shape[1], dtype=torch.long)
        if cached == 0:
            check_ids(input_ids, self.config.vocab_size)
        with torch.no_grad():
            logits = [
                role(
                    input_ids,
                    attention_mask,
                    None if past_key_values is None else past_key_values.of(place),
                    cached > 0,
                    logits_to_keep,
                )
                for place, role in enumerate(self.roles)
            ]
            fused_BSV, alpha_BST = self._fuse(logits)
        if self.trace is not None and alpha_BST.shape[1] == 1:
            if self._alpha_of_steps is not None:
                self._alpha_of_steps.append(alpha_BST[:, 0])
            elif cached == 0:
                self.trace += traced_texts(input_ids, attention_mask, input_ids.shape[1], [alpha_BST[:, 0]], ())
        return CausalLMOutputWithPast(logits=fused_BSV, past_key_values=past_key_values)

    def new_cache(self) -> FusionCache:
        """Return an empty cache for all roles."""
        return FusionCache([role for role in self.roles if isinstance(role, Role)])

    def generate(  # type: ignore[override]
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> Any:
        """Generate as any transformers model does, with a cache for every role; the trace is kept if it is a list."""
        config = generation_config or self.generation_config
        if kwargs.get("use_cache", config.use_cache) is not False:
            kwargs.setdefault("past_key_values", self.new_cache())
        beams = kwargs.get("num_beams") or config.num_beams or 1
        if self.trace is None or beams > 1:
            return super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]
        self._alpha_of_steps = []
        try:
            output = super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]
            sequences = output if isinstance(output, Tensor) else output.sequences
            prompt = kwargs["input_ids"] if inputs is None else inputs
            ends = (config.eos_token_id, config.pad_token_id)
            self.trace += traced_texts(
                sequences, kwargs.get("attention_mask"), prompt.shape[1], self._alpha_of_steps, ends
            )
        finally:
            self._alpha_of_steps = None
        return output

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a fusion has no weights of its own.

        Raises:
            MultituneError: always.
        """
        raise MultituneError(
            "A fusion has no weights of its own to save.",
            "save_pretrained",
            "Write a fusion file that names its models.",
        )

    def _fuse(self, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return fused logits [B, S, V] and coefficients [B, S, T] from every role's [B, R, S, V]."""
        words, device = self.config.vocab_size, logits[0].device
        rows, _, kept, _ = logits[0].shape
        large_NV, small_NV, *experts_NV = (
            logits[place][:, row, :, :words].flatten(0, 1) for place, row in [(0, 0), (1, 0), *self._places]
        )
        at_once = max(1, LOGITS_AT_ONCE // (words * (len(experts_NV) + 3)))
        parts = [
            fuse(
                large_NV[i : i + at_once],
                small_NV[i : i + at_once].to(device),
                torch.stack([one[i : i + at_once].to(device) for one in experts_NV], dim=1),
                self.fusion,
            )
            for i in range(0, rows * kept, at_once)
        ]
        fused_NV, alpha_NT = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits_BV", "alpha_BT"))
        return fused_NV.unflatten(0, (rows, kept)), alpha_NT.unflatten(0, (rows, kept))
