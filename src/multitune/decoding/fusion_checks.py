"""What models must be to be fused: causal, cached, different, and experts versions of their base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from multitune.errors import MultituneError, nearest
from multitune.models.packed import is_prompt_learning, without_adapters

if TYPE_CHECKING:
    from multitune.models.loading import Backbone

SHAPE = ("model_type", "hidden_size", "num_hidden_layers")


def check_models(large: Backbone, small: Backbone | None, experts: Sequence[Backbone | str]) -> None:
    """Check that models can play their roles.

    Raises:
        MultituneError: no small base; an encoder or encoder-decoder; a model without a key-value cache; virtual tokens;
            an expert of another shape than the base; an adapter that the base does not hold; a model given twice.
    """
    if small is None:
        raise MultituneError(
            "There is no small base: what an expert has learned is told by its difference from it.",
            "small",
            "Name the model that the experts were tuned from.",
        )
    alone = [one for one in experts if not isinstance(one, str)]
    for role, one in [("large model", large), ("small base", small), *(("expert", one) for one in alone)]:
        _check_kind(role, one)
    _check_adapters(small, [one for one in experts if isinstance(one, str)])
    for one in alone:
        _check_shape(one, small)
    _check_different([large, small, *alone])


def check_end_tokens(generation_config: Any, words: int) -> None:
    """Check that the end of a text is among the shared words.

    Raises:
        MultituneError: it is not.
    """
    ends = generation_config.eos_token_id
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and end >= words:
            raise MultituneError(
                f"The large model's end-of-text token {end} is not among the {words:,} words that all models share.",
                "eos_token_id",
                "Take small models that know it.",
            )


def check_ids(input_ids: Tensor, words: int) -> None:
    """Check that all models can read a prompt.

    Raises:
        MultituneError: a token that a small model does not know.
    """
    highest = int(input_ids.max()) if input_ids.numel() else 0
    if highest >= words:
        raise MultituneError(
            f"A prompt has the token {highest}, and the models share only the ids below {words:,}.",
            "input_ids",
            "Leave out the large model's own added tokens.",
        )


def _check_kind(role: str, backbone: Backbone) -> None:
    if backbone.form != "causal":
        raise MultituneError(
            f"The {role} is of form {backbone.form}; logits are fused of causal language models only.",
            backbone.config.name,
            "Take a causal language model.",
        )
    if is_prompt_learning(backbone.model):
        raise MultituneError(
            f"The {role} has an adapter that learns a prompt, whose virtual tokens the others do not read.",
            backbone.config.name,
            "Take a LoRA adapter or a fully tuned model.",
        )
    if getattr(without_adapters(backbone.model), "_is_stateful", False):
        raise MultituneError(
            f"The {role} keeps a state in place of a key-value cache.", backbone.config.name, "Take a transformer."
        )


def _check_adapters(small: Backbone, names: Sequence[str]) -> None:
    held = getattr(small.model, "peft_config", {})
    for place, name in enumerate(names):
        if name not in held:
            raise MultituneError(
                f"The small base holds no adapter '{name}'.{nearest(name, list(held))}",
                f"experts: {name}",
                "Load it into the base first, or give the expert as a model.",
            )
        if name in names[:place]:
            raise MultituneError(f"The adapter '{name}' is given twice.", f"experts: {name}", "Name it once.")
        if not shares_base(held[name]):
            raise MultituneError(
                f"The adapter '{name}' is no plain LoRA, and cannot share a batch with its base.",
                f"experts: {name}",
                "Give the expert as a model of its own.",
            )


def shares_base(adapter: Any) -> bool:
    """Whether rows with and without this adapter can be read in one batch: a LoRA that touches no base weight.

    Args:
        adapter: a peft config.
    """
    return (
        adapter.peft_type.value == "LORA"
        and adapter.bias == "none"
        and not (adapter.use_dora or adapter.modules_to_save or adapter.trainable_token_indices)
    )


def _check_shape(expert: Backbone, small: Backbone) -> None:
    shapes = [
        {name: getattr(without_adapters(one.model).config.get_text_config(), name, None) for name in SHAPE}
        for one in (expert, small)
    ]
    if shapes[0] != shapes[1]:
        named, base = (", ".join(f"{name} {value}" for name, value in shape.items()) for shape in shapes)
        raise MultituneError(
            f"The expert ({named}) is no tuned version of the small base ({base}).",
            expert.config.name,
            "Give the base that the experts were tuned from.",
        )


def _check_different(backbones: Sequence[Backbone]) -> None:
    seen: dict[int, int] = {}
    for place, one in enumerate(backbones):
        if id(one.model) in seen:
            raise MultituneError(
                "One model is given twice.",
                one.config.name,
                "Give the large model, the small base and every expert once.",
            )
        seen[id(one.model)] = place
