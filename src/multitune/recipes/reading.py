"""YAML with line numbers, and overrides of any key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multitune.errors import MultituneError, MultituneErrors, nearest

KeyPath = tuple[str | int, ...]

MOST_VALUES = 200_000
"""Values that one file may hold: anchors that repeat anchors can stand for more than any memory holds."""

SHORTHAND = {"model": "name", "adapt": "method", "train": "path", "validation": "path", "test": "path"}
"""Keys whose value may be a plain string, and the key that the string stands for."""


class SafeYaml12(yaml.SafeLoader):
    """YAML 1.2's plain values: `no`, `on` and 12:30 are text, and 5e-4 is a number (PyYAML reads YAML 1.1)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name


for _tag, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    SafeYaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


@dataclass
class Document:
    """A YAML file as plain values, with the line of every key.

    Attributes:
        path: the file.
        data: what it says.
        lines: line (from 1) of every key path.
        assigned: what set a key path from elsewhere: an override, or a value of a sweep's axis.
        suite: the file that holds the tasks, where they lie in one of their own.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    assigned: dict[KeyPath, str] = field(default_factory=dict)
    suite: Document | None = None

    def where(self, key: KeyPath) -> str:
        """Return "recipe.yaml:12, tasks.a.kind", or the override; a key without one has the nearest above it."""
        name = ".".join(map(str, key))
        for length in range(len(key), 0, -1):
            if assignment := self.assigned.get(key[:length]):
                return f"{assignment}, {name}"
            if self.suite and key[0] == "tasks" and key[:length] in self.suite.lines:
                return self.suite.where(key)
            if line := self.lines.get(key[:length]):
                return f"{self.path}:{line}, {name}"
        return f"{self.path}, {name}" if name else str(self.path)


def read_yaml(path: Path) -> Document:
    """Read a YAML mapping safely, refusing duplicate keys.

    Raises:
        MultituneError: the file is missing, is no YAML, or is no mapping.
        MultituneErrors: keys that stand twice.
    """
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise MultituneError(
            f"There is no file '{path.name}'.{nearest(path.name, beside)}", str(path), "Correct the path."
        )
    document = Document(path, {})
    duplicates: list[MultituneError] = []
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=SafeYaml12)
        data = _plain(node, (), document, duplicates) if node is not None else None
    except UnicodeDecodeError as error:
        raise MultituneError("The file is not UTF-8 text.", str(path), "Save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise MultituneError(f"The file is not YAML: {error.problem}.", where, "Mend the line.") from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise MultituneError(f"The file is not YAML: {reason}.", str(path), "Remove what is no text.") from error
    except RecursionError as error:
        raise MultituneError(
            "An anchor of the file contains itself.", str(path), "Write out what the alias stands for."
        ) from error
    if duplicates:
        raise MultituneErrors(duplicates)
    if not isinstance(data, dict):
        raise MultituneError("The file is not a mapping of keys to values.", str(path), "See `multitune init`.")
    document.data = data
    return document


def _plain(node: yaml.Node, key: KeyPath, document: Document, duplicates: list[MultituneError]) -> Any:
    document.lines.setdefault(key, node.start_mark.line + 1)
    if len(document.lines) > MOST_VALUES:
        raise MultituneError(
            f"The file holds more than {MOST_VALUES} values.", str(document.path), "Keep data in data files."
        )
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*key, i), document, duplicates) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        own = {id(name_node) for name_node, _ in node.value}
        SafeYaml12("").flatten_mapping(node)  # `<<: *anchor` puts the anchor's keys first; own ones override them
        written: set[str] = set()
        for name_node, child in node.value:
            name = str(name_node.value)  # keys are text, also where they look like numbers
            line = name_node.start_mark.line + 1
            if name in written:
                duplicates.append(
                    MultituneError(
                        f"The key '{name}' stands twice.",
                        f"{document.path}:{line}, {'.'.join(map(str, (*key, name)))}",
                        f"Remove or rename one; the first is in line {document.lines[(*key, name)]}.",
                    )
                )
                continue
            written |= {name} if id(name_node) in own else set()
            document.lines[(*key, name)] = line
            values[name] = _plain(child, (*key, name), document, duplicates)
        return values
    return SafeYaml12("").construct_object(node, deep=True)


def override(document: Document, assignments: list[str]) -> None:
    """Apply ``key.path=value`` assignments in order; values are YAML, list items are named by their number.

    Keys that a mapping does not hold yet are added; whether they are allowed is for the schema to say. Tasks and steps
    are not added by one of their keys: a misspelt name would train something new without a word.

    Raises:
        MultituneErrors: an assignment without "=", through something that is no mapping, into an unknown task or step,
            or past a list's end.
    """
    errors = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            errors.append(
                MultituneError(f"'{assignment}' assigns nothing.", f"--set {assignment}", "Write --set key.path=value.")
            )
            continue
        try:
            assign(document, name, yaml.load(text, Loader=SafeYaml12), f"--set {assignment}")
        except yaml.YAMLError:
            errors.append(MultituneError(f"'{text}' is not YAML.", f"--set {assignment}", "Quote the value."))
        except MultituneError as error:
            errors.append(error)
    if errors:
        raise MultituneErrors(errors)


def assign(document: Document, name: str, value: Any, where: str) -> None:
    """Set a dotted key of a document; rules and errors as for ``override``.

    Args:
        document: its data are changed in place.
        name: the key.
        value: plain values.
        where: whom errors about the value name.
    """
    keys = key_path(name, document.data, where)
    _assign(document.data, keys, value, where)
    document.assigned[keys] = where
    if keys[-1] in LENGTHS and keys[-2:-1] == ("training",) and value is not None:
        _forget_other_lengths(document, keys)


LENGTHS = ("epochs", "steps", "examples")
"""Keys that each set the length of a training."""


def _forget_other_lengths(document: Document, keys: KeyPath) -> None:
    """A length that is set takes the place of the file's, whichever key that one has."""
    training: Any = document.data
    for key in keys[:-1]:
        training = training[key]
    for other in LENGTHS:
        if other != keys[-1] and (*keys[:-1], other) not in document.assigned:
            training.pop(other, None)


def key_path(name: str, data: Any, where: str) -> KeyPath:
    """Split "tasks.v1.5.kind" at its dots, but not inside a key that the data hold ("v1.5"); items become numbers.

    A new axis of a sweep is one key, with all its dots.
    """
    parts = name.split(".")
    keys: list[str | int] = []
    while parts:
        held = [n for n in range(len(parts), 0, -1) if isinstance(data, dict) and ".".join(parts[:n]) in data]
        taken = held[0] if held else len(parts) if keys == ["sweep"] else 1
        key: str | int = ".".join(parts[:taken])
        if isinstance(data, list):
            if not str(key).isdigit() or int(key) >= len(data):
                raise MultituneError(
                    f"'{'.'.join(map(str, keys))}' is a list of {len(data)}; '{key}' is none of its items.",
                    where,
                    f"Use a number from 0 to {len(data) - 1}." if data else "Set the list itself.",
                )
            key = int(key)
            data = data[key]
        else:
            data = data.get(key) if isinstance(data, dict) else None
        keys.append(key)
        parts = parts[taken:]
    return tuple(keys)


def _assign(data: dict[str, Any], keys: KeyPath, value: Any, where: str) -> None:
    place: Any = data
    key: Any
    for depth, key in enumerate(keys[:-1]):
        below = place.get(key) if isinstance(place, dict) else place[key]
        if below is None and depth == 1 and keys[0] in ("tasks", "steps") and place:
            raise MultituneError(
                f"There is no '{key}' in {keys[0]}.{nearest(str(key), place)}",
                where,
                f"Name one of: {', '.join(place)}; a new one is set whole: --set '{keys[0]}.{key}={{...}}'.",
            )
        if not isinstance(below, dict | list):
            if below is not None and key not in SHORTHAND:
                raise MultituneError(
                    f"'{'.'.join(map(str, keys[: depth + 1]))}' is a single value, not a mapping.",
                    where,
                    "Set that key itself.",
                )
            below = {} if below is None else {SHORTHAND[str(key)]: below}
            place[key] = below
        place = below
    place[keys[-1]] = value


def data_folder(document: Document) -> Path:
    """Return the absolute folder that the paths of a document's tasks start from.

    Raises:
        MultituneError: its data_folder does not exist.
    """
    folder = document.path.resolve().parent
    written = document.data.get("data_folder")
    if not isinstance(written, str):  # absent, or a mistake that the schema tells
        return folder
    if not (found := (folder / Path(written).expanduser()).resolve()).is_dir():
        raise MultituneError(
            f"The data folder '{written}' does not exist.",
            document.where(("data_folder",)),
            "Correct the path, or set another one for this run: --set data_folder=/my/data.",
        )
    return found
