"""A LoRA adapter out of two whole models: each matrix's change by its largest singular directions.

delta = theta - theta_0 ~ B A with B = U sqrt(S), A = sqrt(S) V^T of a randomised singular value decomposition (Halko,
Martinsson and Tropp, arXiv 0909.4061; `torch.svd_lowrank`). One matrix is in memory at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.pretrained import empty_model
from multitune.weights.checkpoints import FLOATS, Checkpoint
from multitune.weights.matching import match
from multitune.weights.merging import COMPANIONS
from multitune.weights.writing import check_target, partial_folder

OVERSAMPLED, POWER_ITERATIONS = 8, 4
TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}


@dataclass(frozen=True)
class Extraction:
    """What an adapter keeps of a change.

    Attributes:
        out: the adapter's folder.
        rank: of every matrix, at most.
        errors: by matrix, |delta - B A| / |delta| (Frobenius norms).
        left_out: tensors that changed and are no matrix of a linear layer, with their share of |delta|^2.
        kept: share of the squared norm of the whole change that the adapter holds.
    """

    out: Path
    rank: int
    errors: dict[str, float]
    left_out: dict[str, float]
    kept: float


def extract_lora(base: Path, tuned: Path, out: Path, *, rank: int = 16, seed: int = 0) -> Extraction:
    """Write a peft adapter that approximates a fine-tuned model on its base.

    Args:
        base: folder of the base.
        tuned: folder of a whole model tuned from it.
        out: the adapter's folder; absent or empty.
        rank: of every matrix, at most; less where a matrix is smaller.
        seed: of the decomposition's random directions.

    Raises:
        MultituneError: models that do not belong together, an adapter in place of a whole model, no change at all.
    """
    if rank < 1:
        raise MultituneError(f"An adapter of rank {rank} holds nothing.", "rank", "Give a rank of at least 1.")
    first, second = Checkpoint.open(base), Checkpoint.open(tuned)
    for each in (first, second):
        if each.adapter is not None:
            raise MultituneError(
                "The folder holds an adapter already.",
                str(each.folder),
                "Give whole models: the base and the tuned one.",
            )
    check_target(out, [first.folder, second.folder])
    found = match(first, first.names, second, {}, {})
    layers, form = _linear_layers(first)
    tensors: dict[str, torch.Tensor] = {}
    errors: dict[str, float] = {}
    outside: dict[str, float] = {}
    ranks: dict[str, int] = {}
    total = held = 0.0
    for name in first.names:
        if first.entries[name].dtype not in FLOATS:
            continue
        delta = second.tensor(found[name].name).float() - first.tensor(name).float()
        norm = float(delta.double().square().sum())
        total += norm
        module = name.removesuffix(".weight")
        if module not in layers or not name.endswith(".weight"):
            if norm > 0:
                outside[name] = norm
            continue
        if norm == 0:
            continue
        delta = delta.T if layers[module] else delta
        b, a = factors(delta, rank, seed)
        rest = float((delta - b @ a).double().square().sum())
        held += norm - rest
        errors[name] = (rest / norm) ** 0.5
        ranks[module] = b.shape[1]
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
    if not tensors:
        raise MultituneError(
            "No matrix of a linear layer differs between the models.",
            f"{tuned} against {base}",
            "Give the tuned model.",
        )
    config = _config(first, ranks, rank, form, transposed=any(layers[module] for module in ranks))
    _write(out, tensors, config, second.folder)
    return Extraction(out, rank, errors, {name: norm / total for name, norm in outside.items()}, held / total)


def factors(delta: torch.Tensor, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B [O, r] and A [r, I] such that B A approximates delta [O, I] best, up to the randomised search."""
    rank = min(rank, *delta.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(delta, q=min(rank + OVERSAMPLED, *delta.shape), niter=POWER_ITERATIONS)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, (v[:, :rank] * root).T


def _linear_layers(base: Checkpoint) -> tuple[dict[str, bool], str]:
    """Return the linear layers inside the model by module name, with whether they are stored transposed, and the form.

    The output layer is none of them: peft leaves it alone, and it is often tied to the embedding.
    """
    from transformers.pytorch_utils import Conv1D

    model, form = empty_model(ModelConfig(name=str(base.folder)))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    }
    return layers, form


def _config(base: Checkpoint, ranks: Mapping[str, int], rank: int, form: str, *, transposed: bool) -> dict[str, Any]:
    smaller = {module: own for module, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[form],
        "base_model_name_or_path": str(base.folder),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,  # alpha / r stays 1
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "inference_mode": True,
    }


def _write(out: Path, tensors: dict[str, torch.Tensor], config: Mapping[str, Any], tuned: Path) -> None:
    folder = partial_folder(out)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in COMPANIONS:
            if (tuned / name).is_file():
                shutil.copyfile(tuned / name, folder / name)
        if out.exists():
            out.rmdir()  # empty, as check_target saw
        folder.replace(out)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise MultituneError(
            f"The adapter cannot be written: {error.strerror or error}.", str(out), "Mend that, and try again."
        ) from None
