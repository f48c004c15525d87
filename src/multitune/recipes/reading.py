"""YAML with line numbers, and overrides of any key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from multitune.errors import MultituneError, MultituneErrors, nearest

KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """A YAML file as plain values, with the line of every key.

    Attributes:
        path: the file.
        data: what it says.
        lines: line (from 1) of every key path; an overridden key keeps none.
    """

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, key: KeyPath) -> str:
        """Return "recipe.yaml:12, tasks.a.kind"; the line is that of the nearest key above when it has none."""
        name = ".".join(map(str, key))
        for length in range(len(key), 0, -1):
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
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        data = _plain(node, (), document, duplicates) if node is not None else None
    except UnicodeDecodeError as error:
        raise MultituneError("The file is not UTF-8 text.", str(path), "Save it as UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise MultituneError(f"The file is not YAML: {error.problem}.", where, "Mend the line.") from error
    if duplicates:
        raise MultituneErrors(duplicates)
    if not isinstance(data, dict):
        raise MultituneError("The file is not a mapping of keys to values.", str(path), "See `multitune init`.")
    document.data = data
    return document


def _plain(node: yaml.Node, key: KeyPath, document: Document, duplicates: list[MultituneError]) -> Any:
    document.lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*key, i), document, duplicates) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        own = {id(name_node) for name_node, _ in node.value}
        yaml.SafeLoader("").flatten_mapping(node)  # `<<: *anchor` puts the anchor's keys first; own ones override them
        written: set[str] = set()
        for name_node, child in node.value:
            name = str(name_node.value)
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
    return yaml.SafeLoader("").construct_object(node, deep=True)


def override(document: Document, assignments: list[str]) -> None:
    """Apply ``key.path=value`` assignments in order; values are YAML, list items are named by their number.

    Keys that a mapping does not hold yet are added; whether they are allowed is for the schema to say.

    Raises:
        MultituneErrors: an assignment without "=", through something that is no mapping, or past a list's end.
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
            _assign(document, name, yaml.safe_load(text))
        except yaml.YAMLError:
            errors.append(MultituneError(f"'{text}' is not YAML.", f"--set {assignment}", "Quote the value."))
        except MultituneError as error:
            errors.append(error)
    if errors:
        raise MultituneErrors(errors)


def _assign(document: Document, name: str, value: Any) -> None:
    keys = name.split(".")
    place: Any = document.data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                raise MultituneError(
                    f"'{'.'.join(keys[:depth])}' is a list of {len(place)}; '{key}' is none of its items.",
                    f"--set {name}",
                    f"Use a number from 0 to {len(place) - 1}.",
                )
            index: Any = int(key)
        elif isinstance(place, dict):
            index = key
            if not last and not isinstance(place.get(key), dict | list):
                # a shorthand such as `model: tiny` or `train: a.jsonl` gives way to the mapping it stands for
                short = {"model": "name", "adapt": "method"}.get(key, "path")
                place[key] = {} if place.get(key) is None else {short: place[key]}
        else:
            raise MultituneError(
                f"'{'.'.join(keys[:depth])}' is a single value, not a mapping.", f"--set {name}", "Set that key itself."
            )
        if last:
            place[index] = value
        else:
            place = place[index]
