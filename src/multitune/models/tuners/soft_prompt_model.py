"""Models with a soft prompt: what they read in place of the text, and the tuners by which peft knows them.

The prompt is a child of the base model and acts by hooks: whatever calls the model - training, scoring, beams - finds
the prompt read, and gets answers for its own tokens alone. The position of a token is its place among the row's
tokens: neither padding nor the prompt counts, and a generated token has the position that it had in training.

Shape legend: as in `multitune.models.tuners.soft_prompt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.nn import functional as F

from multitune.models.prompted_inputs import insert, mask_with_prompt, padding_in_front, with_prompt, without_prompt
from multitune.models.tuners.soft_prompt import Folded, SoftPrompt
from multitune.models.tuners.soft_prompt_config import DeptConfig, EptConfig, MptConfig, SoftPromptConfig
from multitune.models.tuners.task_ids import SOFT_PROMPT, TaskIds

__all__ = ["DeptConfig", "DeptModel", "EptConfig", "EptModel", "MptConfig", "MptModel"]

HOST = SOFT_PROMPT


class PromptHost(Protocol):
    """What holds the prompts that a model reads."""

    @property
    def acting(self) -> str | None:
        """Name of the prompt that is read now; None: none is."""

    def length(self, name: str) -> int:
        """Return the number of vectors of a prompt."""

    def folded(self, name: str) -> Folded:
        """Return the prompt [s, d], and what it adds to the text by position [L, d], if anything."""

    def of_rows(self, name: str, shared_sd: Tensor, embedded: Tensor) -> Tensor:
        """Return the prompt of all rows [s, d], or of every row [B, s, d]."""

    @property
    def embedding(self) -> Callable[[], Any]:
        """Returns the base's embedding of tokens."""


class Reading:
    """Hooks by which a model reads the prompt that acts: a decoder or an encoder as a whole, an encoder-decoder in its
    encoder."""

    def __init__(self, host: PromptHost, model: Any) -> None:
        self.host = host
        self._tokens: int | None = None
        if model.config.is_encoder_decoder:
            before = [(model.get_encoder(), self._before_encoder), (model.get_decoder(), self._before_cross_attention)]
            self.handles: list[Any] = []
        else:
            before = [(model, self._before_model)]
            self.handles = [model.register_forward_hook(self._after_model, with_kwargs=True)]
        self.handles += [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in before]

    def end(self) -> None:
        """Act no more."""
        for handle in self.handles:
            handle.remove()

    def _before_model(self, model: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        self._tokens, name = None, self.host.acting
        if name is None:
            return None
        inputs = _by_name(model, args, kwargs)
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return (), self._after_cache(name, inputs, cache.get_seq_length())
        self._tokens = self._read(name, inputs)
        return (), inputs

    def _after_model(self, model: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Leave of the answers those of the input's own tokens."""
        if self._tokens is None:
            return None
        if isinstance(output, tuple):
            place = 0 if kwargs.get("labels") is None else 1
            return (*output[:place], without_prompt(output[place], self._tokens), *output[place + 1 :])
        for name in ("logits", "last_hidden_state"):
            if name in output:
                output[name] = without_prompt(output[name], self._tokens)
        return output

    def _before_encoder(self, encoder: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        name = self.host.acting
        if name is None:
            return None
        inputs = _by_name(encoder, args, kwargs)
        self._read(name, inputs)
        return (), inputs

    def _before_cross_attention(self, decoder: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        """Let the decoder see the states at the prompt, of which the mask of the text does not know."""
        mask, states = kwargs.get("encoder_attention_mask"), kwargs.get("encoder_hidden_states")
        if self.host.acting is None or mask is None or states is None:
            return None
        more = states.shape[1] - mask.shape[1]
        return args, {**kwargs, "encoder_attention_mask": mask_with_prompt(mask, more)} if more else kwargs

    def _read(self, name: str, inputs: dict[str, Any]) -> int:
        """Put the prompt before the input, in place of the token ids; return the number of tokens n."""
        text, mask = self._embedded(inputs), inputs.get("attention_mask")
        shared_sd, offsets_Ld = self.host.folded(name)
        prompt = self.host.of_rows(name, shared_sd, text)
        if offsets_Ld is not None:
            text = text + _placed(offsets_Ld, text, mask).to(text.dtype)
        found = with_prompt(prompt, text, mask, inputs.get("position_ids"), inputs.get("labels"))
        told = {"attention_mask": found.attention_mask, "position_ids": found.position_ids, "labels": found.labels}
        inputs.update({key: value for key, value in told.items() if value is not None})
        inputs.update(input_ids=None, inputs_embeds=found.inputs_embeds)
        if (types := inputs.get("token_type_ids")) is not None:
            front = types.new_zeros(len(types), prompt.shape[-2])
            inputs["token_type_ids"] = insert(front, types, padding_in_front(mask))
        if isinstance(keep := inputs.get("logits_to_keep"), Tensor):
            inputs["logits_to_keep"] = keep + prompt.shape[-2]
        return text.shape[1]

    def _after_cache(self, name: str, inputs: dict[str, Any], cached: int) -> dict[str, Any]:
        """Return the inputs that follow a prompt and tokens in the cache: mask and positions count the prompt."""
        length, mask = self.host.length(name), inputs.get("attention_mask")
        offsets_Ld = self.host.folded(name)[1]
        if offsets_Ld is not None:
            text = self._embedded(inputs)
            added = _placed(offsets_Ld, text, mask, before=cached - length)
            inputs.update(input_ids=None, inputs_embeds=text + added.to(text.dtype))
        if mask is not None:
            inputs["attention_mask"] = mask_with_prompt(mask, length)
        if (positions := inputs.get("position_ids")) is not None:
            inputs["position_ids"] = positions + length
        return inputs

    def _embedded(self, inputs: Mapping[str, Any]) -> Tensor:
        given: Tensor | None = inputs.get("inputs_embeds")
        mask = inputs.get("attention_mask")
        if isinstance(mask, Mapping) or (mask is not None and mask.ndim != 2):
            raise ValueError(
                "a soft prompt needs a mask of tokens, [rows, tokens]; neither packed rows nor a static cache"
            )
        return self.host.embedding()(inputs["input_ids"]) if given is None else given


def _placed(offsets_Ld: Tensor, text: Tensor, mask: Tensor | None, before: int = 0) -> Tensor:
    """Return what is added to every token [B or 1, n, d]: the row of its position, nothing from position L on.

    Args:
        offsets_Ld: by position.
        text: [B, n, d].
        mask: [B, before + n], 0 on padding; the position of a token is the number of ones up to it, less one.
        before: tokens that were read already.
    """
    tokens, limit = text.shape[1], len(offsets_Ld)
    if padding_in_front(mask) is None and not before:
        return F.pad(offsets_Ld[:tokens], (0, 0, 0, max(0, tokens - limit)))[None]
    if mask is None:
        place = torch.arange(before, before + tokens, device=text.device)[None]
    else:
        place = ((mask != 0).cumsum(1) - 1)[:, -tokens:]
    beyond = (place < 0) | (place >= limit)
    return F.embedding(place.masked_fill(beyond, limit), F.pad(offsets_Ld, (0, 0, 0, 1)))


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a forward by their names."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


class SoftPromptModel(BaseTuner):
    """A frozen model that reads a learned prompt."""

    tuner_layer_cls = SoftPrompt
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's own attribute

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Freeze the base as peft does, then add the prompt."""
        base: Any = model
        config: Any = self.peft_config[adapter_name]
        embedding = _embedding_of(base)
        vectors_sd = _first_vectors(base, config, embedding.weight)
        if kwargs.get("low_cpu_mem_usage"):
            vectors_sd = vectors_sd.to("meta")
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if not hasattr(base, HOST):
            task_ids = TaskIds()
            if isinstance(config, MptConfig):
                self.__dict__["task_ids"] = task_ids  # where `task_ids_of` finds them
            setattr(base, HOST, SoftPrompt(task_ids, base.get_input_embeddings))
            self.__dict__["reading"] = Reading(getattr(base, HOST), base)
        host: SoftPrompt = getattr(base, HOST)
        acts = adapter_name in self.active_adapters
        host.update_layer(adapter_name, config, vectors_sd, trains=acts and not config.inference_mode)
        if acts:
            host.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a soft prompt takes the place of no layer")

    def _check_merge_allowed(self) -> None:
        # the error by which peft's own tuners refuse a merge that their method rules out
        raise NotImplementedError("a prompt is read, and cannot be added into the weights")

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        base = super()._unload_and_optionally_merge(*args, **kwargs)
        self.__dict__.pop("reading").end()
        delattr(base, HOST)
        return base


class DeptModel(SoftPromptModel):
    """A frozen model that reads a short prompt and a text shifted by position (arXiv:2309.05173)."""

    prefix = "dept_"


class EptModel(SoftPromptModel):
    """DePT whose prompt takes from the shifts, and from projections of itself (arXiv:2405.11464)."""

    prefix = "ept_"


class MptModel(SoftPromptModel):
    """A frozen model that reads a prompt of each row's task (arXiv:2303.02861)."""

    prefix = "mpt_"


def _embedding_of(base: Any) -> Any:
    """Return the embedding of a model that a prompt can stand before.

    Raises:
        ValueError: it keeps a state in place of a cache, or has no embeddings of tokens.
    """
    if getattr(base, "_is_stateful", False):
        raise ValueError(
            "a recurrent model keeps no cache that tells whether its prompt was read; lora has no such need"
        )
    embedding = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    if getattr(embedding, "weight", None) is None:
        raise ValueError("this model has no embeddings of tokens, which a prompt would stand before")
    return embedding


def _first_vectors(base: Any, config: SoftPromptConfig, weight_Vd: Tensor) -> Tensor:
    """Return what the prompt starts as [s, d]: rows of the embedding, of tokens at random or of the text's."""
    length = config.num_virtual_tokens
    if weight_Vd.is_meta or config.inference_mode:  # counted only, or loaded in a moment
        return torch.zeros(length, weight_Vd.shape[1], device=weight_Vd.device)
    if config.init == "vocabulary":
        tokens = torch.randint(len(weight_Vd), (length,)).tolist()
    else:
        tokens = _tokens(config, base)
        tokens = (tokens * -(-length // len(tokens)))[:length]
    return weight_Vd.detach()[torch.tensor(tokens, device=weight_Vd.device)].float()


def _tokens(config: SoftPromptConfig, base: Any) -> list[int]:
    from transformers import AutoTokenizer

    name = config.tokenizer_name_or_path or config.base_model_name_or_path or base.name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer for init_text was found at {name!r}; set tokenizer_name_or_path") from error
    tokens: list[int] = tokenizer(config.init_text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise ValueError(f"init_text has no tokens: {config.init_text!r}")
    return tokens
