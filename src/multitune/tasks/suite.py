"""A suite: a named set of tasks, read from YAML with every mistake told by file and line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.tasks.task import Source, Task

if TYPE_CHECKING:
    import yaml


class Suite(BaseModel):
    """Named tasks; some may be held out, which are scored and never trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: dict[str, Task]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Give every task the name that it has in the mapping."""
        if not isinstance(value, dict) or not isinstance(value.get("tasks"), dict):
            return value
        tasks = {
            name: {"name": str(name), **task} if isinstance(task, dict) else task
            for name, task in value["tasks"].items()
        }
        return {**value, "tasks": tasks}

    @model_validator(mode="after")
    def _names_agree(self) -> Suite:
        for name, task in self.tasks.items():
            if task.name != name:
                raise ValueError(f"the task '{name}' calls itself '{task.name}'")
        return self

    @property
    def training(self) -> tuple[Task, ...]:
        """Tasks that are trained on."""
        return tuple(task for task in self.tasks.values() if task.train is not None and not task.held_out)

    @property
    def held_out(self) -> tuple[Task, ...]:
        """Tasks that are scored only."""
        return tuple(task for task in self.tasks.values() if task.train is None or task.held_out)


def load_suite(path: Path, folder: Path | None = None) -> Suite:
    """Return the suite of a YAML file {tasks: {name: {...}}}; sources' paths are relative to the file.

    Args:
        path: the file.
        folder: where the tasks will be read from, when it is not the file's own: the paths are rewritten to start
            there.

    Raises:
        MultituneErrors: all mistakes at once, each with line and key.
        MultituneError: the file is missing or not valid YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MultituneError(f"The suite cannot be read: {error}.", str(path), "Check the path.") from error
    tree, data = _parse(text, path)
    errors = list(_repeated_keys(tree, path, "", set()))
    if errors:
        raise MultituneErrors(errors)
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        raise MultituneErrors(_told(error, tree, path)) from error
    if not suite.tasks:
        raise MultituneError("The suite has no tasks.", f"{path}: tasks", "List tasks under tasks:, each by its name.")
    return suite if folder is None else _moved(suite, path.parent, folder)


def _parse(text: str, path: Path) -> tuple[yaml.Node, Any]:
    """The nodes of a YAML file, which know their lines, and its values."""
    import yaml

    try:
        tree, data = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise MultituneError(
            f"The suite is not valid YAML: {error.problem}.", f"{path}:{line}", "Check indentation, quotes and colons."
        ) from error
    if not isinstance(tree, yaml.MappingNode):
        raise MultituneError("The suite is no mapping.", f"{path}:1", "Begin with tasks: and list them by name.")
    return tree, data


def _repeated_keys(node: yaml.Node, path: Path, key: str, seen: set[int]) -> Iterable[MultituneError]:
    """A key that stands twice would silently hide what stood under it first: two tasks of one name, above all."""
    import yaml

    if id(node) in seen:  # an alias, which may even lead to itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield from _repeated_keys(item, path, f"{key}.{place}", seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for name, value in node.value:
        line, inner = name.start_mark.line + 1, f"{key}.{name.value}".lstrip(".")
        if name.value in lines:
            yield MultituneError(
                f"'{name.value}' stands here a second time; the first is on line {lines[name.value]}.",
                f"{path}:{line}: {inner}",
                "Give one of them another name, or remove it.",
            )
        lines[str(name.value)] = line
        yield from _repeated_keys(value, path, inner, seen)


def _told(error: ValidationError, tree: yaml.Node, path: Path) -> list[MultituneError]:
    return [_told_one(dict(detail), tree, path) for detail in error.errors()]


def _told_one(detail: dict[str, Any], tree: yaml.Node, path: Path) -> MultituneError:
    keys = [str(part) for part in detail["loc"]]
    line, keys = _line_of(tree, keys)
    where = f"{path}:{line}: {'.'.join(keys)}"
    if detail["type"] == "extra_forbidden":
        fields = _keys_of(keys[:-1])
        return MultituneError(
            f"'{keys[-1]}' is no key here.{nearest(keys[-1], fields)}", where, f"The keys are: {', '.join(fields)}."
        )
    reason = str(detail["msg"]).removeprefix("Value error, ")
    return MultituneError(f"{reason[:1].upper()}{reason[1:]}.", where, f"The value is {_short(detail['input'])}.")


def _keys_of(place: list[str]) -> list[str]:
    """The keys that a mapping at a place may have."""
    if not place:
        return ["tasks"]
    if len(place) == 3:  # tasks.NAME.train
        return list(Source.model_fields)
    return [name for name in Task.model_fields if name != "name"]


def _line_of(tree: yaml.Node, keys: list[str]) -> tuple[int, list[str]]:
    """The line of the innermost key that is written down, and the keys that lead to it."""
    import yaml

    line, node, found = tree.start_mark.line + 1, tree, []
    for key in keys:
        children = node.value if isinstance(node, yaml.MappingNode) else []
        match = next(((name, value) for name, value in children if str(name.value) == key), None)
        if match is None:
            break
        line, node = match[0].start_mark.line + 1, match[1]
        found.append(key)
    return line, found or keys


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _moved(suite: Suite, start: Path, folder: Path) -> Suite:
    """The suite with paths that start at another folder."""

    def moved(source: Source | None) -> Source | None:
        if source is None or source.path is None or Path(source.path).expanduser().is_absolute():
            return source
        path = os.path.relpath(start.resolve() / source.path, folder.resolve())
        return source.model_copy(update={"path": Path(path).as_posix()})

    tasks = {
        name: task.model_copy(update={split: moved(getattr(task, split)) for split in ("train", "validation", "test")})
        for name, task in suite.tasks.items()
    }
    return suite.model_copy(update={"tasks": tasks})
