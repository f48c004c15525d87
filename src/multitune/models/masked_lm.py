"""Language models with the head that fills masks, from the hub or a folder."""

from __future__ import annotations

from typing import Any

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.location import resolve
from multitune.models.pretrained import chosen_device, chosen_dtype, hub_arguments, load_tokenizer, told_in_our_words


def load_masked_lm(config: ModelConfig, device: str = "auto") -> tuple[Any, Any]:
    """Return model and tokenizer, the model in evaluation mode.

    Raises:
        MultituneError: the model cannot be loaded, has no head for masks in its files, or its tokenizer has no mask.
    """
    from transformers import AutoModelForMaskedLM

    place = chosen_device(device)
    tokenizer = load_tokenizer(config)
    if tokenizer.mask_token_id is None:
        raise MultituneError(
            "The tokenizer has no mask token, so the model fills no mask.",
            f"model {config.name}",
            "Take a masked language model such as roberta-large, or a causal one.",
        )
    with told_in_our_words(config):
        model, told = AutoModelForMaskedLM.from_pretrained(
            resolve(config),
            dtype=chosen_dtype(config, place),
            use_safetensors=True,
            output_loading_info=True,
            **hub_arguments(config),
        )
    if missing := sorted(told["missing_keys"]):
        raise MultituneError(
            f"The files of the model lack weights of its language-model head: {', '.join(missing[:3])}.",
            f"model {config.name}",
            "Take the checkpoint as it was pre-trained, with the head that fills masks.",
        )
    return model.to(place).eval(), tokenizer
