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

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from multitune.adaptation.continue_config import ContinueConfig
from multitune.adaptation.half_config import HalfConfig
from multitune.adaptation.methods import (
    CONTINUE,
    METHODS,
    NOT_OFFERED,
    REQUIRED,
    STARTS_NOT_OFFERED,
    WITHOUT_ADAPTER,
)
from multitune.adaptation.update_config import UPDATES, UpdateConfig
from multitune.errors import nearest

FIELDS_FILE = "peft_fields.json"

OWN_OPTIONS: dict[str, type[BaseModel]] = {"half": HalfConfig, CONTINUE: ContinueConfig, **UPDATES}
"""Methods with options that are not peft's, as models that know their ranges."""


class AdaptationConfig(BaseModel):
    """What trains: ``full``, ``half``, or a peft method with its options, as ``{method: lora, r: 16, lora_alpha: 32}``.

    Attributes:
        method: ``full``, ``half`` (options: `HalfConfig`) or the name of a peft method in lower case; see METHODS for
            the defaults that differ from peft's. ``continue`` trains the adapter that the model has (options:
            `ContinueConfig`). In YAML a plain string means the method.
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
        """The options of peft's config, with the method's defaults."""
        given = {name: value for name, value in self.options.items() if name not in own_fields(self.method)}
        return {**METHODS[self.method].defaults, **given}

    @property
    def update(self) -> UpdateConfig | None:
        """What a method that acts on the optimiser means with these options; None for others."""
        given = {name: value for name, value in self.options.items() if name in own_fields(self.method)}
        return UPDATES[self.method](**given) if self.method in UPDATES else None

    @property
    def passes(self) -> int:
        """How many forward passes one loss takes: AdaMix compares two, unless it has a single module to draw."""
        return 2 if self.method == "adamix" and self.options.get("n_modules") != 1 else 1

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
    routed = config.method == CONTINUE or METHODS[config.method].needs_task
    if not routed or "tasks" not in (peft_fields().get(placed_as(config.method), {}) | own_fields(config.method)):
        return config
    return AdaptationConfig(method=config.method, budget=config.budget, **{**config.options, "tasks": list(names)})


@cache
def peft_fields() -> dict[str, dict[str, Any]]:
    """Return method -> option -> {"types", "default", "choices"}, as `multitune.adaptation.fields` wrote it."""
    text = files("multitune.adaptation").joinpath(FIELDS_FILE).read_text(encoding="utf-8")
    return {method: entry["fields"] for method, entry in json.loads(text)["methods"].items()}


def placed_as(method: str) -> str:
    """Return the method of peft that places a method's modules: itself, or LoRA for its relatives."""
    return method if method == CONTINUE else METHODS[method].placed_as or method


def own_fields(method: str) -> dict[str, Any]:
    """Return the options of a method that are not peft's, with their defaults."""
    if method not in OWN_OPTIONS:
        return {}
    return {name: field.default for name, field in OWN_OPTIONS[method].model_fields.items()}


def default_options(method: str) -> dict[str, Any]:
    """Return every option of a method with its default: peft's, ours where they differ, and what peft has not."""
    fields = peft_fields().get(placed_as(method), {})
    return {name: METHODS[method].defaults.get(name, field.get("default")) for name, field in fields.items()} | (
        own_fields(method)
    )


def _method_problems(method: str) -> list[str]:
    if method in NOT_OFFERED:
        return [f"The method '{method}' is not offered: {NOT_OFFERED[method]}."]
    if method not in METHODS and method != CONTINUE:
        return [f"There is no method '{method}'.{nearest(method, METHODS)}"]
    return []


def _option_problems(method: str, options: Mapping[str, Any]) -> list[str]:
    if method == "full":
        return [f"Full fine-tuning has no option '{name}'." for name in options]
    own = own_fields(method)
    known = peft_fields().get(placed_as(method), {})
    problems = _own_problems(method, {name: value for name, value in options.items() if name in own})
    for name, value in options.items():
        if name in own:
            continue
        if name not in known:
            problems.append(f"The method '{method}' has no option '{name}'.{nearest(name, (*known, *own))}")
        elif not _fits(value, known[name]["types"]):
            expected = " or ".join(known[name]["types"])
            problems.append(f"The option '{name}' of '{method}' must be {expected}, not {value!r}.")
        elif name == "init_lora_weights" and (reason := _refused_start(value)):
            problems.append(f"The option '{name}' of '{method}' cannot be '{value}': {reason}.")
        elif isinstance(value, str) and not _is_choice(value, known[name]):
            problems.append(
                f"The option '{name}' of '{method}' cannot be '{value}'.{nearest(value, known[name]['choices'])}"
            )
    missing = [name for name in REQUIRED.get(method, ()) if name not in options]
    problems += [f"The method '{method}' needs the option '{name}'." for name in missing]
    return problems


def _refused_start(value: Any) -> str | None:
    """Return why LoRA's matrices cannot start so; None where they can."""
    return next((why for start, why in STARTS_NOT_OFFERED.items() if str(value).startswith(start)), None)


def _own_problems(method: str, options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with options that are not peft's, in sentences."""
    if method not in OWN_OPTIONS:
        return []
    try:
        OWN_OPTIONS[method](**options)
    except ValidationError as error:
        return [_sentence(method, problem) for problem in error.errors()]
    return []


def _sentence(method: str, problem: Any) -> str:
    wanted = problem["msg"].removeprefix("Input should be ")
    return f"The option '{problem['loc'][0]}' of '{method}' must be {wanted}, not {problem['input']!r}."


def _budget_problems(method: str, options: Mapping[str, Any], budget: float | None) -> list[str]:
    if budget is None:
        return []
    size = METHODS[method].size if method != CONTINUE else None
    if method in (*WITHOUT_ADAPTER, CONTINUE) and size is None:
        return [f"The method '{method}' has no size that a budget could set."]
    if size in options:
        return [f"Both budget and {size} say how large the adapter is; leave one out."]
    return []


def _is_choice(value: str, field: Mapping[str, Any]) -> bool:
    return "string" in field["types"] or value in field["choices"]


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
