"""The methods: full, half, and peft's by their own names in lower case, with the defaults that differ from peft's.

Where peft's default places an adapter on two attention projections from a table of known architectures, ours is every
linear layer: it holds for every architecture, and QLoRA (arXiv:2305.14314, section 4) found it necessary to match full
fine-tuning. Methods that act elsewhere (norms, biases, embeddings, keys and values) keep peft's own places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALL_LINEAR = {"target_modules": "all-linear"}

VIRTUAL_TOKENS = {"num_virtual_tokens": 20}
"""The prompt length from which gains level off (arXiv:2104.08691, section 3.2)."""

METHODS: dict[str, Mapping[str, Any]] = {
    "full": {},
    "half": {},  # its defaults stand in HalfConfig
    "adalora": ALL_LINEAR,
    "adamss": ALL_LINEAR,
    "adaption_prompt": {"adapter_len": 10},  # LLaMA-Adapter, arXiv:2303.16199, section 4
    "beft": {},
    "boft": ALL_LINEAR,
    "c3a": ALL_LINEAR,
    "cartridge": VIRTUAL_TOKENS,
    "cpt": {},
    "deft": ALL_LINEAR,
    "delora": ALL_LINEAR,
    "fourierft": ALL_LINEAR,
    "frod": ALL_LINEAR | {"progressbar": False},
    "glora": ALL_LINEAR,
    "gralora": ALL_LINEAR,
    "hira": ALL_LINEAR,
    "hra": ALL_LINEAR,
    "ia3": {},
    "lily": ALL_LINEAR,
    "ln_tuning": {},
    "loha": ALL_LINEAR,
    "lokr": ALL_LINEAR,
    # rank 16 with alpha = 2 r: what LLaMA-Factory, Axolotl and TRL examples use; QLoRA found the rank to matter little
    "lora": ALL_LINEAR | {"r": 16, "lora_alpha": 32},
    "miss": ALL_LINEAR,
    "multitask_prompt_tuning": VIRTUAL_TOKENS,
    "oft": ALL_LINEAR,
    "osf": {},
    "p_tuning": VIRTUAL_TOKENS,
    "peanut": ALL_LINEAR,
    "poly": ALL_LINEAR,
    "prefix_tuning": VIRTUAL_TOKENS,
    "prompt_tuning": VIRTUAL_TOKENS,
    "psoft": ALL_LINEAR,
    "pvera": ALL_LINEAR,
    "randlora": ALL_LINEAR,
    "road": ALL_LINEAR,
    "shadow": {},
    "shira": ALL_LINEAR,
    "supertuning": ALL_LINEAR,
    "tinylora": ALL_LINEAR,
    "trainable_tokens": {},
    "unilora": ALL_LINEAR,
    "vblora": ALL_LINEAR,
    "vera": ALL_LINEAR,
    "waveft": ALL_LINEAR,
    "xlora": {},
}

WITHOUT_ADAPTER = ("full", "half")
"""Methods that train the model's own weights; all others are peft's."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "cpt": ("cpt_token_ids",),
    "trainable_tokens": ("token_indices",),
}
"""Options without which a method has no meaning, and for which no default could be right."""

CACHED_PREFIX = ("cartridge", "prefix_tuning")
"""Methods whose learned keys and values come to every layer as a cache, which a layer computed twice cannot have."""

NOT_OFFERED: dict[str, str] = {
    "multitask_prompt_tuning": "it needs the task's id at inference, which held-out tasks do not have",
    "poly": "it needs the task's id at inference, which held-out tasks do not have",
    "xlora": "peft 0.21 writes an adapter file without the weights that it trains",
}
"""Methods that peft offers and that are refused, with the reason."""
