"""Last hidden states and the vocabulary head, apart: the head is then evaluated only where there are labels.

Between the two, architectures differ: some scale the hidden states, some scale, shift or cap the logits. What is known
is in the small functions below; what is not is found by comparing, once per model, with the model's own forward, which
then takes over (`hidden_route`).

Shape legend: ``B`` rows, ``S`` positions, ``D`` width, ``N`` chosen positions, ``V`` vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multitune.models.packed import (
    evaluating,
    is_prompt_learning,
    logit_difference,
    packed_forward_inputs,
    without_adapters,
)
from multitune.models.tuners.task_ids import PROMPTS, without_task_ids

logger = logging.getLogger("multitune.models")

HiddenRoute = Literal["decoder", "captured", "full"]
"""How hidden states are had: from the decoder alone; from a forward of the whole model in which the decoder's output
is captured (needed where peft acts in the model's own forward); or not at all, and logits take their place."""

AGREEMENT: dict[torch.dtype, float] = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference from the model's own logits, in standard deviations of the logits. The arithmetic is the same, so
that rounding alone gives next to nothing."""

_ROUTES: WeakKeyDictionary[nn.Module, HiddenRoute] = WeakKeyDictionary()


def hidden_states(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the hidden states from which `head_logits` predicts: [B, S, D].

    Args:
        model: causal or encoder-decoder LM, with or without adapters.
        batch: a micro-batch. Causal: ``input_ids``, ``position_ids``, ``example_ids``; the state at i predicts token
            i + 1. Encoder-decoder: ``input_ids``, ``attention_mask`` and ``labels``; the state at i predicts label i.

    Returns:
        One vector per position of the input (causal) or of the labels (encoder-decoder); virtual tokens of prompt
        learning are cut off. On the route ``full`` these are logits already.
    """
    return _states(model, batch, hidden_route(model))


def head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Return the logits [N, V] that the model itself computes from hidden states [N, D]."""
    return _logits(model, hidden, hidden_route(model))


@torch.compiler.disable
def hidden_route(model: nn.Module) -> HiddenRoute:
    """Return how this model's hidden states are had; found at the first call with a few random tokens, then kept."""
    route = _ROUTES.get(model)
    if route is None or (route == "decoder" and _acts_in_forward(model)):  # prompts may have come since
        route = _ROUTES[model] = _find_route(model)
        logger.debug("%s: hidden states on the route '%s'", type(without_adapters(model)).__name__, route)
    return route


def _find_route(model: nn.Module) -> HiddenRoute:
    candidates: tuple[HiddenRoute, ...] = ("captured",) if _acts_in_forward(model) else ("decoder", "captured")
    batch = _random_batch(model)
    with evaluating(model), without_task_ids(model), torch.no_grad():
        expected = _states(model, batch, "full")
        for route in candidates:
            try:
                logits = _logits(model, _states(model, batch, route), route)
            except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
                continue  # the architecture does not take these inputs
            if logits.shape == expected.shape:
                difference = logit_difference(logits, expected)
                if difference <= AGREEMENT.get(without_adapters(model).dtype, AGREEMENT[torch.float32]):
                    return route
    logger.warning(
        "the head of %s is not known here: its logits are computed at every position, which takes memory",
        type(without_adapters(model)).__name__,
    )
    return "full"


def _acts_in_forward(model: nn.Module) -> bool:
    """Tell whether peft does something in PeftModel.forward that calling the layers alone would leave out.

    Most tuners live in the layers. Prompt learning adds tokens or a cache, X-LoRA mixes its experts and Shadow starts
    its second stream in a hook of the whole model, our soft prompts are read in one, and activated LoRA looks for its
    invocation tokens. Prompts of tasks are read in a hook of the whole model, with an adapter or without.
    """
    if hasattr(without_adapters(model), PROMPTS):
        return True
    config = getattr(model, "active_peft_config", None)
    if config is None:
        return False
    return (
        is_prompt_learning(model)
        or str(config.peft_type.value) in ("XLORA", "SHADOW", "DEPT", "EPT", "MPT")
        or bool(getattr(config, "alora_invocation_tokens", None))
    )


def _states(model: nn.Module, batch: Mapping[str, Tensor], route: HiddenRoute) -> Tensor:
    plain = without_adapters(model)
    sequence_to_sequence = plain.config.is_encoder_decoder
    inputs = _decoder_inputs(plain, batch) if sequence_to_sequence else packed_forward_inputs(model, batch)
    rows, positions = batch["labels" if sequence_to_sequence else "input_ids"].shape
    if route == "full":
        states = model(**inputs).logits
    elif route == "captured":
        states = _captured(model, plain.get_decoder(), inputs)
    elif sequence_to_sequence:
        states = _from_encoder_and_decoder(plain, inputs)
    else:
        states = plain.get_decoder()(**inputs).last_hidden_state
    if states.shape[0] == rows:
        return states[:, -positions:]
    return states.reshape(rows, positions, -1)  # flash attention: the rows were laid out as one


def _decoder_inputs(plain: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return encoder inputs and the labels shifted right, as decoder inputs; the padding at the end needs no mask."""
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": shift_right(batch["labels"], plain.config),
        "use_cache": False,
    }


def shift_right(labels_BS: Tensor, config: Any) -> Tensor:
    """Return decoder inputs: the start token, then the labels without their last; -100 becomes padding."""
    start = torch.full_like(labels_BS[:, :1], config.decoder_start_token_id)
    shifted_BS = torch.cat([start, labels_BS[:, :-1]], dim=1)
    return shifted_BS.masked_fill(shifted_BS == -100, config.pad_token_id)


def _from_encoder_and_decoder(plain: Any, inputs: Mapping[str, Any]) -> Tensor:
    mask = inputs["attention_mask"]
    encoded = plain.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    return plain.get_decoder()(
        input_ids=inputs["decoder_input_ids"],
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state


def _captured(model: nn.Module, decoder: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Run the whole model, with the head at one position only where it allows that; return the decoder's output."""
    captured: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        captured.append(output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0])

    few = {"logits_to_keep": 1} if _takes_logits_to_keep(model) else {}
    handle = decoder.register_forward_hook(keep)
    try:
        model(**inputs, **few)
    finally:
        handle.remove()
    return captured[-1]  # X-LoRA runs the decoder once before, to weigh its experts


def _takes_logits_to_keep(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(without_adapters(model).forward).parameters


def _logits(model: nn.Module, hidden: Tensor, route: HiddenRoute) -> Tensor:
    if route == "full":
        return hidden
    plain = without_adapters(model)
    config = plain.config.get_text_config()
    head = plain.get_output_embeddings()
    logits = head(_scaled_states(hidden, config))
    return _adjusted_logits(logits, plain, config)


def _scaled_states(hidden: Tensor, config: Any) -> Tensor:
    """T5 and LongT5 with tied embeddings scale the decoder's output by d_model^(-1/2); UMT5 always does."""
    if getattr(config, "scale_decoder_outputs", False) or config.model_type == "umt5":
        return hidden * config.d_model**-0.5
    return hidden


def _adjusted_logits(logits: Tensor, plain: Any, config: Any) -> Tensor:
    """Apply what comes after the head: scale (Cohere), divisor (Granite), bias (BART), soft cap (Gemma 2)."""
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "lm_head_multiplier", None)) is not None:
        logits = logits * factor
    if (bias := getattr(plain, "final_logits_bias", None)) is not None:
        logits = logits + bias.squeeze(0)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def _random_batch(model: nn.Module) -> dict[str, Tensor]:
    """Two rows of unequal length without a second example in a row, which every route takes."""
    plain = without_adapters(model)
    generator = torch.Generator().manual_seed(0)
    vocabulary = plain.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (2, 6), generator=generator)
    present = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    batch = {
        "input_ids": tokens,
        "attention_mask": present,
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 1]]),
        "example_ids": torch.where(present == 1, torch.tensor([[0], [1]]), -1),
        "labels": F.pad(tokens[:, :3], (0, 1), value=-100),
    }
    return {name: tensor.to(plain.device) for name, tensor in batch.items()}
