"""The embedded base `tiny`: a small Llama decoder, trained on text that the package's own generators write."""

from __future__ import annotations

from pathlib import Path


def tiny_path() -> Path:
    """The folder with the weights, tokenizer and model card of `tiny`; `AutoModelForCausalLM` loads it."""
    return Path(__file__).parent / "weights"
