"""What is done with trained routing: new tasks, one task's adapter as plain LoRA, annealing towards the average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multitune.models.tuners.mhr import SMALL, MhrConfig, MhrLayer
from multitune.models.tuners.task_ids import UNKNOWN


def routed_layers(model: Any) -> Iterator[tuple[str, MhrLayer]]:
    """Yield the routed layers of an adapted model by their path in it."""
    for path, module in model.named_modules():
        if isinstance(module, MhrLayer):
            yield path, module


def new_tasks(
    model: Any, names: Sequence[str], *, seed: int = 0, trains: str = "all", keep_known: bool = False
) -> None:
    """Give the active adapter fresh, almost uniform logits for other tasks; its modules stay (few-shot adaptation).

    Args:
        model: a PeftModel with an MHR adapter.
        names: of the tasks, in the order of their ids.
        seed: of the logits.
        trains: ``all`` (MHR) or ``routing`` (MHR-z).
        keep_known: whether the tasks that the adapter knows stay, with their logits and ids, before the new ones.

    Raises:
        ValueError: every task has a module of its own (router ``private``), so that a new one has none.
    """
    adapter, generator = model.active_adapter, torch.Generator().manual_seed(seed)
    config: MhrConfig = model.peft_config[adapter]
    known = list(config.tasks or ()) if keep_known else []
    tasks = [*known, *(name for name in names if name not in known)]
    if config.router == "private" and tasks != list(config.tasks or ()):
        raise ValueError("with the router private every task has a module of its own, and a new task has none")
    told = {name: value for name, value in asdict(config).items() if name not in ("peft_type", "auto_mapping")}
    changed = MhrConfig(**told | {"tasks": tasks, "trains": trains})
    model.peft_config[adapter] = changed
    fresh: dict[int, nn.Parameter] = {}
    for _, layer in routed_layers(model):
        old = layer.mhr_Z[adapter]
        if id(old) not in fresh:
            drawn = torch.empty(changed.n_tasks, *old.shape[1:]).uniform_(-SMALL, SMALL, generator=generator)
            drawn = drawn.to(old)
            drawn[: len(known)] = old.detach()[: len(known)]
            fresh[id(old)] = nn.Parameter(drawn)
        layer.mhr_Z[adapter] = fresh[id(old)]
        layer.configs[adapter] = changed
        layer.set_adapter(adapter)
    logits = model.base_model._logits
    for key, old in list(logits.items()):
        if key[0] == adapter and id(old) in fresh:
            logits[key] = fresh[id(old)]


def anneal(model: Any, share: float) -> None:
    """Move all mixtures towards the average: alpha <- c alpha + (1 - c) / S with c = cos(pi / 2 share).

    Args:
        model: a PeftModel with an MHR adapter.
        share: of the annealing that is done, 0 to 1; at 1 every task mixes all modules alike.
    """
    for _, layer in routed_layers(model):
        layer.annealing = math.cos(math.pi / 2 * share) if share < 1 else 0.0


@torch.no_grad()
def end_annealing(model: Any) -> None:
    """Let the logits of every task say what annealing ended at, all modules alike, so that the saved adapter says it.

    Args:
        model: with an MHR adapter whose router is ``skills``, or a module that holds it.
    """
    for _, layer in routed_layers(model):
        for adapter in layer.active_adapters:
            layer.mhr_Z[adapter].zero_()
        layer.annealing = 1.0


@torch.no_grad()
def lora_of(model: Any, task: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return one task's adapter as plain LoRA of the same rank: options of LoraConfig, and tensors by peft's names.

    Args:
        model: a PeftModel with an MHR adapter.
        task: one of the adapter's; None: the average of all modules (the start of MHR-mu).

    Raises:
        ValueError: the adapter has no such task.
    """
    adapter = model.active_adapter
    config: MhrConfig = model.peft_config[adapter]
    if task is not None and task not in (config.tasks or ()):
        raise ValueError(f"the adapter has no task {task}; it has {', '.join(config.tasks or ())}")
    place = (config.tasks or []).index(task) if task is not None else UNKNOWN
    tensors: dict[str, Tensor] = {}
    targets = []
    for path, layer in routed_layers(model):
        a_1Ir, b_1rO = layer.factors(adapter, torch.tensor([place], device=layer.mhr_A[adapter].device))
        tensors[f"{path}.lora_A.weight"] = a_1Ir[0].T.contiguous()
        tensors[f"{path}.lora_B.weight"] = b_1rO[0].T.contiguous()
        targets.append(path.removeprefix("base_model.model."))
    return {"r": config.r, "lora_alpha": config.alpha, "target_modules": sorted(targets)}, tensors


def export_lora(model: Any, folder: Path, task: str | None = None) -> None:
    """Write one task's adapter, or the average, as a LoRA that plain peft loads; arguments as for `lora_of`."""
    from peft import LoraConfig

    options, tensors = lora_of(model, task)
    config = model.peft_config[model.active_adapter]
    lora = LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
        **options,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    lora.save_pretrained(str(folder))
