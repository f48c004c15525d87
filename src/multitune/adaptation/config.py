"""The adaptation of a recipe: a method and, flat beside it, its options.

Those of peft are checked against `peft_fields.json`, so that a misspelt option is found without importing peft, which
takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from multitune.adaptation.half_config import HalfConfig, half_problems
from multitune.adaptation.methods import METHODS, NOT_OFFERED, REQUIRED, WITHOUT_ADAPTER
from multitune.errors import nearest

FIELDS_FILE = "peft_fields.json"


class AdaptationConfig(BaseModel):
    """What trains: ``full``, ``half``, or a peft method with its options, as ``{method: lora, r: 16, lora_alpha: 32}``.

    Attributes:
        method: ``full``, ``half`` (options: `HalfConfig`) or the name of a peft method in lower case; see METHODS for
            the defaults that differ from peft's. In YAML a plain string means the method.
        budget: numbers that may train, or, below 1, their share of the base's parameters; the method is made as large
            as that allows (see `multitune.adaptation.budget`).
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str = "full"
    budget: float | None = Field(None, gt=0, description="numbers that may train; below 1: share of the base's")

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given, by HalfConfig's or peft's names."""
        return dict(self.model_extra or {})

    @property
    def resolved(self) -> dict[str, Any]:
        """The options with the method's defaults."""
        return {**METHODS[self.method].defaults, **self.options}

    @property
    def half(self) -> HalfConfig | None:
        """What `half` means with these options; None for other methods."""
        return HalfConfig(**self.options) if self.method == "half" else None

    @model_validator(mode="before")
    @classmethod
    def _method_alone(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_options(self) -> AdaptationConfig:
        problems = [*_method_problems(self.method)] or [
            *_option_problems(self.method, self.options),
            *_budget_problems(self.method, self.options, self.budget),
        ]
        if problems:
            raise ValueError(" ".join(problems))
        return self


def for_tasks(config: AdaptationConfig, names: Sequence[str]) -> AdaptationConfig:
    """Return the config with the names of the tasks, where its method routes by them; else as it is."""
    if not METHODS[config.method].needs_task or "tasks" not in peft_fields()[config.method]:
        return config
    return AdaptationConfig(method=config.method, budget=config.budget, **{**config.options, "tasks": list(names)})


@cache
def peft_fields() -> dict[str, dict[str, Any]]:
    """Return method -> option -> {"types", "default", "choices"}, as `multitune.adaptation.fields` wrote it."""
    text = files("multitune.adaptation").joinpath(FIELDS_FILE).read_text(encoding="utf-8")
    return {method: entry["fields"] for method, entry in json.loads(text)["methods"].items()}


def _method_problems(method: str) -> list[str]:
    if method in NOT_OFFERED:
        return [f"The method '{method}' is not offered: {NOT_OFFERED[method]}."]
    if method not in METHODS:
        return [f"There is no method '{method}'.{nearest(method, METHODS)}"]
    return []


def _option_problems(method: str, options: Mapping[str, Any]) -> list[str]:
    if method == "full":
        return [f"Full fine-tuning has no option '{name}'." for name in options]
    if method == "half":
        return half_problems(options)
    known = peft_fields()[method]
    problems = []
    for name, value in options.items():
        if name not in known:
            problems.append(f"The method '{method}' has no option '{name}'.{nearest(name, known)}")
        elif not _fits(value, known[name]["types"]):
            expected = " or ".join(known[name]["types"])
            problems.append(f"The option '{name}' of '{method}' must be {expected}, not {value!r}.")
        elif isinstance(value, str) and not _is_choice(value, known[name]):
            problems.append(
                f"The option '{name}' of '{method}' cannot be '{value}'.{nearest(value, known[name]['choices'])}"
            )
    missing = [name for name in REQUIRED.get(method, ()) if name not in options]
    problems += [f"The method '{method}' needs the option '{name}'." for name in missing]
    return problems


def _budget_problems(method: str, options: Mapping[str, Any], budget: float | None) -> list[str]:
    if budget is None:
        return []
    if method in WITHOUT_ADAPTER:
        return [f"The method '{method}' has no size that a budget could set."]
    size = METHODS[method].size
    if size in options:
        return [f"Both budget and {size} say how large the adapter is; leave one out."]
    return []


def _is_choice(value: str, field: Mapping[str, Any]) -> bool:
    """Tell whether a string is allowed; a choice such as ``pissa_niter_[number of iters]`` allows its beginning."""
    if "string" in field["types"]:
        return True
    return any(
        value == choice or ("[" in choice and value.startswith(choice.split("[")[0])) for choice in field["choices"]
    )


def _fits(value: Any, types: list[str]) -> bool:
    """Tell whether a YAML value is of one of the types; an integer is a number, a choice is written as a string."""
    if value is None:
        return "null" in types
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, int):
        return "integer" in types or "number" in types
    if isinstance(value, float):
        return "number" in types
    if isinstance(value, str):
        return "string" in types or "choice" in types
    if isinstance(value, list | tuple | set):
        return "list" in types
    return isinstance(value, Mapping) and "mapping" in types
