"""How the weights of a method that acts on the optimiser are updated: what stays, what moves along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from multitune.adaptation.update_config import ChildTuningConfig, DeltaLoraConfig, FisherConfig, UpdateConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class UpdateRule:
    """What training has to do beside an optimiser's step.

    Attributes:
        method: of the registry.
        config: its options.
        seed: of what it draws.
    """

    method: str
    config: UpdateConfig
    seed: int

    @property
    def needs_fisher(self) -> bool:
        """Whether entries are chosen by their Fisher information before training."""
        return isinstance(self.config, FisherConfig) or (
            isinstance(self.config, ChildTuningConfig) and self.config.variant == "D"
        )

    @property
    def samples(self) -> int:
        """How many examples the Fisher information is averaged over; 0 where it is not needed."""
        config = self.config
        return config.samples if self.needs_fisher and isinstance(config, FisherConfig | ChildTuningConfig) else 0


def kept_entries(config: UpdateConfig, entries: int) -> int:
    """Return how many of so many entries a rule trains over the whole run."""
    if isinstance(config, FisherConfig):
        return min(entries, max(1, int(config.keep * entries if config.keep < 1 else config.keep)))
    if isinstance(config, ChildTuningConfig) and config.variant == "D":
        return max(1, int(config.reserve * entries))
    return entries


def own_weights(model: Any) -> dict[str, nn.Parameter]:
    """Return by name the parameters that train, without an encoder's heads, which always train whole."""
    carrier, prefix = (model.encoder, "encoder.") if hasattr(model, "heads") else (model, "")
    return {prefix + name: p for name, p in carrier.named_parameters() if p.requires_grad}


def trained_numbers(model: Any, rule: UpdateRule | None) -> int:
    """Return how many numbers of an adapted model train."""
    everything = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if rule is None:
        return everything
    entries = sum(p.numel() for p in own_weights(model).values())
    return everything - entries + kept_entries(rule.config, entries)


def largest_entries(scores: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return by name masks of the ``count`` entries with the largest scores over all tensors; earlier ones win ties."""
    import torch

    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[torch.argsort(flat, descending=True, stable=True)[:count].cpu()] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def moving_bases(model: Any, rule: UpdateRule | None) -> Iterator[tuple[str, Any]]:
    """Yield by path the LoRA layers whose base weight moves along (Delta-LoRA); nothing for other rules."""
    if rule is None or not isinstance(rule.config, DeltaLoraConfig):
        return
    for path, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            yield path, module
