"""`multitune init`: look at data files and write a recipe that a person can read and change."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multitune.errors import MultituneError, MultituneErrors
from multitune.tasks.files import reader_of
from multitune.tasks.task import Source, Split, Task

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "eval": "test",
}
"""File names, or their last word, that say which split a file is."""

TEST_FRACTION = 0.1
"""Share of the training rows kept for testing where there is no test file."""


@dataclass
class _Found:
    """The files of one task by split, relative to the recipe."""

    name: str
    splits: dict[Split, str] = field(default_factory=dict)


def draft_recipe(files: Sequence[Path], out: Path) -> str:
    """Return a commented recipe for data files; ``load_recipe`` accepts it as it is.

    A folder with files named train, dev or test is one task; any other file is a task of its own, and ``a_train.jsonl``
    goes with ``a_test.jsonl``. What was inferred from the rows is written down, so that it can be corrected.

    Args:
        files: data files and folders.
        out: where the recipe will lie; its paths are relative to that folder.

    Raises:
        MultituneErrors: files that cannot be read, each with the reason.
    """
    from multitune.tasks.prompting import resolve

    folder = out.resolve().parent
    found = _group(_expand(files), folder)
    tasks, errors = [], []
    for one in found:
        try:
            tasks.append((one, resolve(_task(one), folder)))
        except MultituneError as error:
            errors.append(MultituneError(error.what, f"{', '.join(one.splits.values())} ({error.where})", error.mend))
    if errors:
        raise MultituneErrors(errors)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.resolve().parent.name).strip("-_.") or "recipe"
    return _HEAD.format(name=name) + "\n".join(_describe(*task) for task in tasks) + _TAIL


def _expand(files: Sequence[Path]) -> list[Path]:
    expanded: list[Path] = []
    errors = []
    for path in files:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and reader_of(p) is not None)
            expanded += inside
            if not inside:
                errors.append(MultituneError("The folder holds no data file.", str(path), "Name another folder."))
        elif not path.exists():
            errors.append(MultituneError(f"There is no file '{path.name}'.", str(path), "Correct the path."))
        elif reader_of(path) is None:
            errors.append(
                MultituneError(
                    f"The format of '{path.name}' is not known.",
                    str(path),
                    "Give .jsonl, .json, .csv, .tsv or .parquet files.",
                )
            )
        else:
            expanded.append(path)
    if errors:
        raise MultituneErrors(errors)
    return list(dict.fromkeys(expanded))


def _group(files: Iterable[Path], folder: Path) -> list[_Found]:
    """Bring the splits of a task together by their names."""
    found: dict[tuple[Path, str], _Found] = {}
    for path in files:
        stem = path.name.split(".")[0]
        words = [w for w in re.split(r"[-_]", stem) if w]
        split = SPLIT_NAMES.get(words[-1].lower()) if words else None
        base = "_".join(words[:-1]) if split else stem
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", base or path.resolve().parent.name).strip("-_.") or "task"
        one = found.setdefault((path.resolve().parent, name), _Found(name))
        one.splits.setdefault(split or "train", os.path.relpath(path.resolve(), folder))
    _make_names_different(list(found.values()))
    return list(found.values())


def _make_names_different(found: list[_Found]) -> None:
    seen: dict[str, int] = {}
    for one in found:
        number = seen[one.name] = seen.get(one.name, 0) + 1
        if number > 1:
            one.name = f"{one.name}-{number}"


def _task(one: _Found) -> Task:
    sources = {split: Source(path=path) for split, path in one.splits.items()}
    if "train" not in sources:
        return Task(name=one.name, held_out=True, **sources)
    if "test" not in sources:
        sources["test"] = Source(fraction=TEST_FRACTION)
    return Task(name=one.name, **sources)


def _describe(one: _Found, task: Task) -> str:
    lines = [f"  {one.name}:"]
    if "train" not in one.splits:
        lines.append("    held_out: true  # scored before and after, never trained on")
    lines += [f"    {split}: {_text(path)}" for split, path in one.splits.items()]
    if "train" in one.splits and "test" not in one.splits:
        lines.append(f"    test: {{fraction: {TEST_FRACTION}}}  # cut from train by a digest of each row's content")
    lines.append(f"    kind: {task.kind}  # label, choose, generate or regress")
    if task.layout not in ("auto", "fields"):
        lines.append(f"    layout: {task.layout}  # recognised from the fields")
    lines += _templates("prompt", task.prompt) + _templates("target", task.target)
    if isinstance(task.choices, tuple):
        lines.append(f"    choices: {json.dumps(list(task.choices), ensure_ascii=False)}")
    elif isinstance(task.choices, Mapping):
        lines.append(f"    choices: {json.dumps(dict(task.choices), ensure_ascii=False)}")
    elif task.choices:
        lines.append(f"    choices: {_text(task.choices)}")
    if task.kind == "generate":
        lines.append(f"    max_new_tokens: {task.max_new_tokens}")
    return "\n".join(lines) + "\n"


def _templates(role: str, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    value = _text(texts[0]) if len(texts) == 1 else json.dumps(list(texts), ensure_ascii=False)
    return [f"    {role}: {value}"]


def _text(value: str) -> str:
    """Return a string as YAML that needs no thought about quotes: JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


_HEAD = """\
# Written by `multitune init` from a look at the files; every line may be changed.
#   multitune check FILE   the plan before the bill: rows, tokens, shares, memory, time
#   multitune run FILE     train, score before and after, report
name: {name}
seed: 0

# The model to adapt: a hub id, the path of a model folder, or tiny, the embedded base that trains on two CPU cores.
model: tiny

tasks:
"""

_TAIL = """
# How many rows per task the base and every trained model are scored on.
score: {rows: 500}

steps:
  joint:
    do: train
    tasks: all            # all in one model; `each` trains one model per task; or a list of names
    mixture: {policy: temperature, temperature: 2.0}   # also proportional, equal, capped, weights, annealed, sequential
    adapt: {method: lora, r: 16}                       # or full, or any method of peft with its own options
    training:
      epochs: 1
      batch_size: 8       # rows per optimiser step; a packed row holds several examples, so small data want few
      max_length: 512
      learning_rate: 1.0e-3   # large models want about 2.0e-4 for adapters and 2.0e-5 for full
      aggregation: task_token_mean   # every task counts alike; token_mean is plain fine-tuning
    export: adapter       # merged: added into the weights, loads with plain AutoModel
"""
