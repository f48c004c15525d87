"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

from multitune.models.packed import without_adapters


def recompute_activations(model: Any) -> None:
    """Switch gradient checkpointing on (arXiv:1604.06174): one more forward pass for memory of one layer at a time.

    Args:
        model: a transformers model or a PeftModel around one; changed in place.
    """
    plain = without_adapters(model)
    options = {"use_reentrant": False}
    if hasattr(plain, "activation_checkpointing_enable"):
        plain.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # its name before transformers 5.23
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    # adapters below frozen embeddings get gradients only where the layers' input carries some
    plain.enable_input_require_grads()
