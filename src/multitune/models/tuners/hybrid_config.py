"""Options of the methods that put modules of several kinds into one model."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig
from peft.utils import PeftType
from transformers.activations import ACT2FN


@dataclass
class HybridConfig(PeftConfig):
    """Options of every hybrid; see `MamConfig` and `UniPeltConfig`."""

    r: int = field(default=48)
    prefix_length: int = field(default=10)
    activation: str = field(default="relu")
    target_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if self.activation not in ACT2FN:
            raise ValueError(f"transformers has no activation {self.activation}")
        for name in ("r", "prefix_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")


@dataclass
class MamConfig(HybridConfig):
    """Options of `MamModel`; the defaults are those of the paper's runs (arXiv:2110.04366, section 4.6).

    Attributes:
        r: width of the adapters beside the feed-forwards.
        prefix_length: learned keys and values of every attention.
        scaling: factor s of what the adapters add.
        activation: between the two matrices of an adapter, by transformers' names.
        target_modules: matrices, among those that get a part by themselves; None: all of those.
    """

    r: int = field(default=512)
    prefix_length: int = field(default=30)
    scaling: float = field(default=4.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["MAM"]


@dataclass
class UniPeltConfig(HybridConfig):
    """Options of `UniPeltModel`; the defaults are those of the paper's runs (arXiv:2110.07577, section 4.1).

    Attributes:
        r: width of the adapters behind the feed-forwards.
        prefix_length: learned keys and values of every attention.
        lora_r: rank of the change of queries and values.
        lora_alpha: that change is scaled by lora_alpha / lora_r.
        activation: between the two matrices of an adapter, by transformers' names.
        target_modules: matrices, among those that get a part by themselves; None: all of those.
    """

    lora_r: int = field(default=8)
    lora_alpha: float = field(default=16.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["UNIPELT"]
        if self.lora_r < 1:
            raise ValueError(f"lora_r is at least 1, not {self.lora_r}")
