"""`multitune init`: look at data files and write a recipe that a person can read and change."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from multitune.errors import MultituneError, MultituneErrors
from multitune.recipes.guessing import guess_fields
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


ROWS_LOOKED_AT = 200
"""Rows from which fields are guessed."""


@dataclass
class _Found:
    """The files of one task by split, relative to the recipe.

    Attributes:
        open: the fields among which prompt and target have to be chosen, where that could not be guessed.
        remarks: what deserves a second look, one sentence each.
    """

    name: str
    splits: dict[Split, str] = field(default_factory=dict)
    open: tuple[str, ...] = ()
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Draft:
    """A recipe as text.

    Attributes:
        text: commented YAML; ``load_recipe`` accepts it as it is when nothing is left open.
        open: names of the tasks whose prompt and target have to be filled in.
        remarks: what deserves a second look, one sentence each.
    """

    text: str
    open: tuple[str, ...]
    remarks: tuple[str, ...]


def draft_recipe(files: Sequence[Path], out: Path, model: str = "tiny") -> Draft:
    """Return a commented recipe for data files.

    A folder with files named train, dev or test is one task; any other file is a task of its own, and ``a_train.jsonl``
    goes with ``a_test.jsonl``. What was inferred from the rows is written down, so that it can be corrected.

    Args:
        files: data files and folders.
        out: where the recipe will lie; its paths are relative to that folder.
        model: to be adapted.

    Raises:
        MultituneErrors: files that cannot be read, each with the reason.
    """
    folder = out.resolve().parent
    found = _group(_expand(files), folder)
    tasks, errors = [], []
    for one in found:
        try:
            tasks.append((one, _settled(one, folder)))
        except MultituneError as error:
            errors.append(MultituneError(error.what, f"{', '.join(one.splits.values())} ({error.where})", error.mend))
    if errors:
        raise MultituneErrors(errors)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.resolve().parent.name).strip("-_.") or "recipe"
    head = _HEAD.format(name=name, model=model if re.fullmatch(r"[\w./-]+", model) else _text(model))
    text = head + "\n".join(_describe(*task) for task in tasks) + _TAIL
    remarks = tuple(f"{one.name}: {remark}" for one, _ in tasks for remark in one.remarks)
    return Draft(text, tuple(one.name for one, _ in tasks if one.open), remarks)


def _settled(one: _Found, folder: Path) -> Task:
    """Return a task with all that its rows say of it; what they do not say is noted in ``one``."""
    from multitune.tasks.bad_rows import BadRows
    from multitune.tasks.layouts import Unrecognised
    from multitune.tasks.prompting import resolve
    from multitune.tasks.sources import read_examples

    task = _task(one)
    try:
        task = resolve(task, folder)
    except Unrecognised:
        source = next(source for source in (task.train, task.validation, task.test) if source is not None)
        rows = [example.fields for example in islice(read_examples(source, folder, BadRows()), ROWS_LOOKED_AT)]
        guess = guess_fields(rows)
        if guess is None:
            one.open = tuple(rows[0])
            return task
        text, label = (f"{{{{ {name} }}}}" for name in guess)
        one.remarks.append(f"the fields {guess[0]} (asked) and {guess[1]} (its label) are guessed.")
        task = resolve(task.model_copy(update={"prompt": (text,), "target": (label,), "kind": "label"}), folder)
    _look_at_rows(one, task, folder)
    return task


def _look_at_rows(one: _Found, task: Task, folder: Path) -> None:
    """Note rows that cannot be used, and labels that hardly can be meant."""
    from multitune.tasks.bad_rows import BadRows
    from multitune.tasks.prompting import prompted_examples

    bad_rows, labels, rows = BadRows(), Counter[str](), 0
    first = next(iter(one.splits))
    shares = {"test": None} if first == "train" else {}  # the whole file is looked at
    whole = task.model_copy(update={"on_bad_row": "skip", **shares})
    for prompted in prompted_examples(whole, first, folder, templates="first", bad_rows=bad_rows):
        rows += 1
        if task.kind == "label":
            labels[prompted.target] += 1
    if bad_rows.count:
        where, reason = bad_rows.first[0]
        one.remarks.append(
            f"{bad_rows.count:,} of {rows + bad_rows.count:,} rows cannot be used, the first at {where}: {reason}. "
            "Mend them, or set on_bad_row: skip."
        )
        if any("UTF-8" in reason for _, reason in bad_rows.first):
            one.remarks.append("the file is not UTF-8; convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW.")
    if len(labels) == 1:
        one.remarks.append(f"there is one label alone, {next(iter(labels))!r}: nothing to learn.")
    if rare := [label for label, count in labels.items() if count == 1]:
        one.remarks.append(f"labels that occur once, typing errors perhaps: {', '.join(sorted(rare)[:10])}.")


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
    lines += [f"    # {remark}" for remark in one.remarks]
    if one.open:
        lines.append(f"    # Its fields: {', '.join(one.open)}. Which are asked, and which is the answer?")
        lines += ['    prompt: "{{ FIELD }}"', '    target: "{{ FIELD }}"', ""]
        return "\n".join(lines)
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
model: {model}

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
