"""Writes `peft_fields.json`: the options of every peft method and of ours, for checking recipes without importing peft.

Run ``python -m multitune.adaptation.fields`` after changing the tested version of peft.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from multitune.adaptation.config import FIELDS_FILE

NOT_OPTIONS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}
"""Fields of peft's configs that peft or this package fills in."""

PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def installed_fields() -> dict[str, Any]:
    """Return what the installed peft offers: {"peft": version, "methods": {method: {"config", "fields"}}}."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from multitune.models.tuners import register_tuners

    register_tuners()
    methods = {
        peft_type.value.lower(): {"config": config.__name__, "fields": _fields(config)}
        for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    return {"peft": peft.__version__, "methods": dict(sorted(methods.items()))}


def write(file: Path) -> None:
    """Write `installed_fields` as JSON, in one piece."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(as_text(installed_fields()), encoding="utf-8")
    os.replace(temporary, file)


def as_text(described: Mapping[str, Any]) -> str:
    """Return JSON with one line per option, so that a change of version reads well as a difference."""
    methods = []
    for method, entry in described["methods"].items():
        options = ",\n".join(f"   {json.dumps(n)}: {json.dumps(f)}" for n, f in sorted(entry["fields"].items()))
        methods.append(f'  "{method}": {{"config": "{entry["config"]}", "fields": {{\n{options}\n  }}}}')
    return f'{{"peft": "{described["peft"]}", "methods": {{\n' + ",\n".join(methods) + "\n}}\n"


def _fields(config: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config)
    described = {}
    for field in dataclasses.fields(config):
        if field.name in NOT_OPTIONS:
            continue
        names, choices = _types(hints[field.name])
        default = None if field.default is dataclasses.MISSING else field.default
        entry: dict[str, Any] = {"types": sorted(names | ({"null"} if default is None else set()))}
        if isinstance(default, bool | int | float | str):
            entry["default"] = default.value if isinstance(default, enum.Enum) else default
        if choices:
            entry["choices"] = sorted(choices)
        described[field.name] = entry
    return described


def _types(hint: Any) -> tuple[set[str], set[str]]:
    """Return the JSON names of a type hint's members, and the strings that a Literal or Enum allows."""
    if hint in PLAIN:
        return {PLAIN[hint]}, set()
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        members = [_types(member) for member in typing.get_args(hint)]
        return set().union(*(names for names, _ in members)), set().union(*(choices for _, choices in members))
    if origin is typing.Literal:
        values = typing.get_args(hint)
        strings = {value for value in values if isinstance(value, str)}
        return {PLAIN[type(v)] for v in values if v not in strings} | ({"choice"} if strings else set()), strings
    plain_class = origin if isinstance(origin, type) else hint
    if not isinstance(plain_class, type):
        return {"boolean", "integer", "number", "string", "list", "mapping", "null"}, set()
    if issubclass(plain_class, enum.Enum):
        return {"choice"}, {str(member.value) for member in plain_class}
    if dataclasses.is_dataclass(plain_class) or issubclass(plain_class, Mapping):
        return {"mapping"}, set()
    if issubclass(plain_class, Sequence | Set):
        return {"list"}, set()
    return {"mapping"}, set()


if __name__ == "__main__":
    write(Path(__file__).with_name(FIELDS_FILE))
