"""Checkpoint folders with a few tensors, written without a model class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def write(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """Write a model folder; with several shards, tensors go to them in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def random_tensors(seed: int, dtype: torch.dtype = torch.float32, layers: int = 2, width: int = 8) -> dict[str, Any]:
    """Return the tensors of a very small Llama, from one seed."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {"model.embed_tokens.weight": normal(12, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.self_attn.q_proj.weight"] = normal(width, width)
        tensors[f"{prefix}.self_attn.o_proj.weight"] = normal(width, width)
        tensors[f"{prefix}.mlp.up_proj.weight"] = normal(2 * width, width)
        tensors[f"{prefix}.mlp.down_proj.weight"] = normal(width, 2 * width)
        tensors[f"{prefix}.input_layernorm.weight"] = normal(width)
    tensors["model.norm.weight"] = normal(width)
    tensors["lm_head.weight"] = normal(12, width)
    return tensors


def family(
    folder: Path, models: int = 2, dtype: torch.dtype = torch.float32, shards: int = 1, **sizes: int
) -> tuple[Path, list[Path]]:
    """Write a base and models near it."""
    base = random_tensors(0, dtype, **sizes)
    paths = []
    for model in range(models):
        noise = random_tensors(model + 1, torch.float32, **sizes)
        tensors = {name: (base[name].float() + 0.1 * noise[name]).to(dtype) for name in base}
        paths.append(write(folder / f"model{model}", tensors, shards=shards))
    return write(folder / "base", base, shards=shards), paths
