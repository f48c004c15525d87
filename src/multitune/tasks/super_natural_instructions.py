"""Super-NaturalInstructions (Wang et al. 2022): folders of tasks with a definition, solved examples and instances.

Two layouts are read: the official one, a JSON file per task, and one with ``tasks.jsonl`` beside a folder of splits for
every task. Both become ordinary tasks of kind generate, with their category as a tag.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from multitune.errors import MultituneError
from multitune.tasks.task import Source, Split, Task

Encoding = Literal["definition", "none", "tk-instruct"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TEST, VALIDATION = 100, 10
"""Rows of the published splits of the paper on sample efficiency (Gupta et al. 2023): the first 100 are test, the next
10 validation, the rest train; a task with fewer than 120 gives all of its rows to each."""

EXACT = ("textual entailment", "cause effect classification", "coreference resolution", "dialogue act recognition",
         "answerability classification", "word analogy")  # fmt: skip
"""Categories whose answers are labels: scored by exact match; the others by ROUGE-L."""


@dataclass(frozen=True)
class Definition:
    """One task as its file tells it.

    Attributes:
        name: of its file.
        category: the first one.
        text: what is asked for.
        positive, negative: solved examples, input and output.
        instances: (input, right outputs); () where the rows lie in files of their own.
        files: of the splits, where they do.
    """

    name: str
    category: str
    text: str
    positive: tuple[tuple[str, str], ...]
    negative: tuple[tuple[str, str], ...] = ()
    instances: tuple[tuple[str, tuple[str, ...]], ...] = ()
    files: Mapping[Split, Path] | None = None


def is_suite_folder(folder: Path) -> bool:
    """Whether a folder looks like one of the two layouts."""
    return (folder / "tasks.jsonl").is_file() or any(folder.glob("task*.json"))


def read_folder(folder: Path) -> list[Definition]:
    """Return the tasks of a folder, by name.

    Raises:
        MultituneError: it holds none, or one lacks what a task needs.
    """
    if (folder / "tasks.jsonl").is_file():
        lines = (folder / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
        told = [(f"{folder / 'tasks.jsonl'}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
        found = [_with_files(_parsed(text, where), where, folder) for where, text in told]
    else:
        files = sorted(folder.glob("task*.json"))
        found = [_with_instances(_parsed(file.read_text(encoding="utf-8"), str(file)), file) for file in files]
    if not found:
        raise MultituneError(
            "The folder holds no tasks of Super-NaturalInstructions.",
            str(folder),
            "Give one with task*.json files, or with tasks.jsonl and a folder of train.jsonl and test.jsonl per task.",
        )
    return sorted(found, key=lambda one: one.name)


def split_instances(count: int) -> dict[Split, range]:
    """Return the published splits of a task with so many instances, as places in its file."""
    if count < TEST + 2 * VALIDATION:
        return dict.fromkeys(SPLITS, range(count))
    return {
        "test": range(TEST),
        "validation": range(TEST, TEST + VALIDATION),
        "train": range(TEST + VALIDATION, count),
    }


def chosen_output(outputs: Sequence[str], seed: int, task: str, place: int) -> str:
    """Return one of an instance's right outputs, by seed, task and place alone: the same for every model and order."""
    digest = hashlib.blake2b(f"{seed}/{task}/{place}".encode(), digest_size=8).digest()
    return outputs[int.from_bytes(digest, "big") % len(outputs)]


def as_task(
    definition: Definition,
    sources: Mapping[Split, str],
    *,
    encoding: Encoding,
    positive: int = 2,
    held_out: bool = False,
) -> Task:
    """Return a definition as a task.

    Args:
        definition: as read.
        sources: paths of its splits; rows have ``input``, ``output`` and, with several right answers, ``references``.
        encoding: of the prompt, see `prompt_template`.
        positive: solved examples in the prompt.
        held_out: scored, never trained on.
    """
    exact = definition.category.lower() in EXACT
    several = any(len(outputs) > 1 for _, outputs in definition.instances)
    return Task(
        name=definition.name,
        kind="generate",
        prompt=(prompt_template(definition, encoding, positive),),
        target=("{{ output }}",),
        references="references" if several else None,
        metrics=("exact_match_superni", "rouge_l") if exact else ("rouge_l", "exact_match_superni"),
        tags={"category": definition.category, "benchmark": "super_natural_instructions"},
        held_out=held_out,
        max_new_tokens=128,
        **{split: Source(path=path) for split, path in sources.items()},
    )


def prompt_template(definition: Definition, encoding: Encoding, positive: int = 2) -> str:
    """Return the template of a prompt, byte for byte as published.

    Args:
        definition: whose text and solved examples stand in it.
        encoding: "definition": of Gupta et al. 2023, with the definition and solved examples; "none": theirs without an
            instruction; "tk-instruct": of Wang et al. 2022, which adds a full stop where a text has no last sign.
        positive: solved examples, at most those that there are.
    """
    shown = definition.positive[:positive]
    if encoding == "none":
        return "input: {{ input }}\noutput: "
    if encoding == "definition":
        examples = "".join(
            f"Positive example {number}-\ninput: {read}\noutput: {written}\n"
            for number, (read, written) in enumerate(shown, 1)
        )
        head = f"Definition: {definition.text}\n{examples}Now complete the following example-\n"
        return _literal(head) + "input: {{ input }}\noutput: "
    examples = "".join(
        f" Positive Example {number} -\nInput: {_stopped(read)}\n Output: {_stopped(written)}\n\n"
        for number, (read, written) in enumerate(shown, 1)
    )
    head = f"Definition: {_stopped(definition.text)}\n\n{examples}Now complete the following example -\nInput: "
    signs = json.dumps(string.punctuation)
    stop = f"{{% if input.strip()[-1:] not in {signs} %}}.{{% endif %}}"
    return _literal(head) + "{{ input.strip() }}" + stop + "\nOutput: "


def rows_of(definition: Definition, split: Split, seed: int) -> Iterable[dict[str, Any]]:
    """Yield a split's rows of a task with instances: its input, one right output, and all where there are several.

    Inputs that stand solved in the prompt are left out of every split.
    """
    shown = {read.strip() for read, _ in definition.positive}
    for place in split_instances(len(definition.instances))[split]:
        read, outputs = definition.instances[place]
        if read.strip() in shown:
            continue
        row: dict[str, Any] = {"input": read, "output": chosen_output(outputs, seed, definition.name, place)}
        yield row | ({"references": list(outputs)} if len(outputs) > 1 else {})


def _literal(text: str) -> str:
    """Return text that a template writes as it is."""
    if "{" not in text:
        return text
    return "{% raw %}" + text.replace("{% endraw", "{%endraw") + "{% endraw %}"


def _stopped(text: str) -> str:
    text = text.strip()
    return text if text[-1:] in string.punctuation else text + "."


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise MultituneError(f"This is no JSON: {error}.", where, "Correct it, or take it out.") from None
    if not isinstance(found, dict):
        raise MultituneError("This is no JSON object.", where, "A task is one object.")
    return found


def _with_files(told: Mapping[str, Any], where: str, folder: Path) -> Definition:
    name = str(_needed(told, "task", where))
    if Path(name).name != name:
        raise MultituneError(f"'{name}' is no name of a folder beside it.", where, "Name a folder without slashes.")
    files = {split: folder / name / f"{split}.jsonl" for split in SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not files:
        raise MultituneError(
            f"The task '{name}' has no rows.", where, f"Put train.jsonl and test.jsonl into {folder / name}."
        )
    return Definition(
        name,
        str(_needed(told, "category", where)),
        str(_needed(told, "definition", where)),
        _solved(told.get("positive_examples", ()), where),
        _solved(told.get("negative_examples", ()), where),
        files=files,
    )


def _with_instances(told: Mapping[str, Any], file: Path) -> Definition:
    where = str(file)
    text, categories = _needed(told, "Definition", where), _needed(told, "Categories", where)
    instances = []
    for number, one in enumerate(_needed(told, "Instances", where)):
        try:
            outputs = one["output"] if isinstance(one["output"], list) else [one["output"]]
            instances.append((str(one["input"]), tuple(map(str, outputs))))
        except (TypeError, KeyError):
            outputs = []
        if not outputs:
            raise MultituneError(
                f"Instance {number} has no input or no output.", where, "Give it both, or take it out."
            ) from None
    return Definition(
        file.stem,
        str(categories[0] if isinstance(categories, list) else categories),
        str(text[0] if isinstance(text, list) else text),
        _solved(told.get("Positive Examples", ()), where),
        _solved(told.get("Negative Examples", ()), where),
        tuple(instances),
    )


def _needed(told: Mapping[str, Any], key: str, where: str) -> Any:
    if not told.get(key):
        raise MultituneError(f"The task has no '{key}'.", where, f"Give it '{key}', or take the task out.")
    return told[key]


def _solved(examples: Any, where: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(
            (str(one["input"]), str(one["output"][0] if isinstance(one["output"], list) else one["output"]))
            for one in examples
        )
    except (TypeError, KeyError, IndexError):
        raise MultituneError(
            "A solved example has no input or no output.", where, "Give it both, or take it out."
        ) from None
