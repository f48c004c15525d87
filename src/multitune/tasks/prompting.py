"""From rows to prompts and targets: what a task leaves open is settled, then every example goes through a template."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from multitune.errors import MultituneError, nearest
from multitune.tasks.answer_choices import row_choices
from multitune.tasks.bad_rows import LISTED, BadRow, BadRows
from multitune.tasks.layouts import CHAT_LAYOUTS, chat_messages, explanation, number_of, recognise
from multitune.tasks.sources import label_names, read_examples
from multitune.tasks.task import Example, Message, Prompted, Source, Split, Task
from multitune.tasks.templates import compile_expression, compile_template

__all__ = ["BadRows", "TemplatePolicy", "is_resolved", "prompted_examples", "resolve", "split_of"]

logger = logging.getLogger("multitune.tasks")

TemplatePolicy = Literal["rotate", "first", "all"]

ROWS_LOOKED_AT = 200
"""Rows from which layout, kind and fields are recognised."""

MOST_CHOICES = 1000
"""More distinct labels than this are no classes, and a mistake to train a head for."""


def is_resolved(task: Task) -> bool:
    """Whether a task leaves nothing open that its rows would have to say."""
    answers = task.kind is not None and (task.choices is not None or task.kind not in ("label", "choose"))
    return answers and (task.layout in CHAT_LAYOUTS or bool(task.prompt and task.target))


def resolve(task: Task, folder: Path) -> Task:
    """Return the task with layout, kind, templates and choices settled, and say aloud what was inferred.

    Looks at the first 200 rows of train (else validation, else test). Where a label task lists no choices, all its rows
    are read once and the distinct labels become the choices, in order of number or alphabet.

    Args:
        task: the task as written.
        folder: paths are relative to it.

    Raises:
        MultituneError: no source or no rows, a layout that is not recognised, a template field that no row has, more
            than 1000 labels, a metric that does not exist or does not fit the kind.
    """
    split, source = _first_source(task)
    bad_rows = BadRows()
    rows = list(islice(read_examples(source, folder, bad_rows), ROWS_LOOKED_AT))
    if not rows:
        raise _empty(task, split, bad_rows)
    resolved = recognise(task, rows)
    counts: Counter[str] = Counter()
    if resolved.kind == "label" and resolved.choices is None:
        counts = _count_labels(resolved, source, folder)
        resolved = resolved.model_copy(update={"choices": _counted_choices(resolved, source, folder, counts)})
        if isinstance(resolved.choices, dict):
            counts = Counter({resolved.choices[raw]: rows for raw, rows in counts.items() if raw in resolved.choices})
    if resolved.kind == "choose" and resolved.choices is None:
        raise MultituneError(
            f"Task '{task.name}' is of kind choose and says nowhere what to choose from.",
            f"tasks.{task.name}.choices",
            "Set choices to the field that lists them.",
        )
    _check_metrics(resolved)
    if said := explanation(task, resolved, counts):
        logger.info(said)
    return resolved


def prompted_examples(
    task: Task,
    split: Split,
    folder: Path,
    *,
    templates: TemplatePolicy = "rotate",
    bad_rows: BadRows | None = None,
) -> Iterator[Prompted]:
    """Yield the examples of a split, each through one of the task's templates or all, in constant memory.

    Args:
        task: resolved first where it leaves anything open.
        split: where it is a share of train, rows go by a digest of their content and train leaves them out.
        folder: paths are relative to it.
        templates: "rotate" picks one per example by a digest of its id, "first" takes the first, "all" yields one
            `Prompted` per template, one after the other.
        bad_rows: counts the rows that were left out, where the task says ``on_bad_row: skip``.

    Raises:
        MultituneError: the split has no source or no usable row; bad rows where the task refuses them (the first ten
            are listed).
    """
    if not is_resolved(task):
        task = resolve(task, folder)
    bad_rows = BadRows() if bad_rows is None else bad_rows
    limit = bad_rows.count if task.on_bad_row == "refuse" else math.inf
    groups = _prompted_rows(task, split, folder, templates, bad_rows)
    yielded = False
    for group in groups:
        if bad_rows.count > limit:
            break
        yielded |= bool(group)
        yield from group
    if bad_rows.count > limit:
        any(bad_rows.count >= limit + LISTED for _ in groups)  # reads on until there are ten to list
        raise bad_rows.refusal(f"Task '{task.name}' ({split})", f"tasks.{task.name}.{split}")
    if not yielded:
        raise _empty(task, split, bad_rows)


def _prompted_rows(
    task: Task, split: Split, folder: Path, templates: TemplatePolicy, bad_rows: BadRows
) -> Iterator[list[Prompted]]:
    """Every row through its templates; [] for a bad one."""
    make = _prompter(task)
    pick = (
        _named_template(task)
        if templates == "rotate" and task.prompt_field
        else _template_picker(templates, max(1, len(task.prompt)))
    )
    for example in split_examples(task, split, folder, bad_rows):
        try:
            yield [make(example, template) for template in pick(example)]
        except BadRow as error:
            bad_rows.add(example.where, error.reason)
            yield []


def split_examples(task: Task, split: Split, folder: Path, bad_rows: BadRows | None = None) -> Iterator[Example]:
    """Yield the rows of a split as the source gave them; shares of train are cut here.

    Raises:
        MultituneError: the task has no source for the split; otherwise as `sources.read_examples`.
    """
    source = task.source(split)
    if source is None:
        raise MultituneError(
            f"Task '{task.name}' has no {split} data.", f"tasks.{task.name}.{split}", "Give it a source."
        )
    fractions = {name: _fraction(task, name) for name in ("test", "validation")}
    if not any(fractions.values()) or (split != "train" and source.fraction is None):
        return read_examples(source, folder, bad_rows)
    assert task.train is not None  # Task refuses a fraction without it
    rows = read_examples(task.train, folder, bad_rows)
    cut = (
        example for example in rows if split_of(example.content, fractions["test"], fractions["validation"]) == split
    )
    return islice(cut, source.rows)


def split_of(content: str, test: float, validation: float) -> Split:
    """The split that an example of train falls to when shares of it are cut: by a digest of its content alone.

    So a row stays where it is when others are added before it, when the file is sorted anew or renamed; equal rows fall
    on the same side.
    """
    place = _digest(content, b"split") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _fraction(task: Task, split: Literal["validation", "test"]) -> float:
    source = task.source(split)
    return (source.fraction or 0.0) if source is not None else 0.0


def _digest(id: str, purpose: bytes) -> int:
    """64 bits of an id that are independent for every purpose."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8, person=purpose).digest(), "big")


def _template_picker(policy: TemplatePolicy, count: int) -> Callable[[Example], tuple[int, ...] | range]:
    if policy == "all":
        return lambda example: range(count)
    if policy == "first" or count == 1:
        return lambda example: (0,)
    return lambda example: (_digest(example.id, b"template") % count,)


def _named_template(task: Task) -> Callable[[Example], tuple[int, ...]]:
    """The prompt that a row names."""
    find = compile_expression(str(task.prompt_field), f"tasks.{task.name}.prompt_field")
    places = {task.prompt_name(place): (place,) for place in range(len(task.prompt))}

    def pick(example: Example) -> tuple[int, ...]:
        name = str(find(example.fields))
        if name not in places:
            raise BadRow(f"the row's prompt '{_short(name)}' is none of the task's.{nearest(name, places)}")
        return places[name]

    return pick


def _prompter(task: Task) -> Callable[[Example, int], Prompted]:
    """The function that puts an example through a template; it raises `BadRow`."""
    answer = _answerer(task)
    if task.layout in CHAT_LAYOUTS:

        def from_chat(example: Example, template: int) -> Prompted:
            messages = chat_messages(task.layout, example.fields)
            prompted = answer(example, template, "", messages[-1].content)
            return replace(prompted, messages=(*messages[:-1], Message("assistant", prompted.target)))

        return from_chat

    prompts = [compile_template(text, f"tasks.{task.name}.prompt") for text in task.prompt]
    targets = [compile_template(text, f"tasks.{task.name}.target") for text in task.target]
    if len(targets) == 1:
        targets *= len(prompts)

    with_choices = row_choices(task)

    def from_templates(example: Example, template: int) -> Prompted:
        fields = with_choices(example.fields, template)
        whole = example if fields is example.fields else replace(example, fields=fields)
        prompted = answer(whole, template, prompts[template](fields), targets[template](fields))
        return prompted if whole is example else replace(prompted, example=example)

    return from_templates


def _answerer(task: Task) -> Callable[[Example, int, str, str], Prompted]:
    """The function from example, template, prompt and rendered target to the example with its answer."""
    if task.kind == "label":
        return _label_answerer(task)
    if task.kind == "choose":
        return _choose_answerer(task)
    return _regress_answer if task.kind == "regress" else _generate_answer


def _label_answerer(task: Task) -> Callable[[Example, int, str, str], Prompted]:
    texts = task.choice_texts
    raw = task.choices if isinstance(task.choices, dict) else {text: text for text in texts}
    indices = {label: texts.index(text) for label, text in raw.items()}

    def answer(example: Example, template: int, prompt: str, target: str) -> Prompted:
        label = target.strip()
        index = indices.get(label)
        if index is None:
            raise BadRow(f"the label '{_short(label)}' is none of the {len(texts)} choices.{nearest(label, raw)}")
        return Prompted(example, template, prompt, (), texts[index], texts, index, None)

    return answer


def _choose_answerer(task: Task) -> Callable[[Example, int, str, str], Prompted]:
    find_choices = compile_expression(str(task.choices), f"tasks.{task.name}.choices")

    def answer(example: Example, template: int, prompt: str, target: str) -> Prompted:
        choices = choice_list(find_choices(example.fields))
        right = target.strip()
        if right not in choices:
            raise BadRow(f"the target '{_short(right)}' is none of the row's choices: {_short(', '.join(choices))}")
        return Prompted(example, template, prompt, (), right, choices, choices.index(right), None)

    return answer


def choice_list(found: Any) -> tuple[str, ...]:
    """Return what a row offers to choose from; raises `BadRow` unless it is a list of different texts."""
    if not isinstance(found, list | tuple) or not found:
        raise BadRow(f"the choices are {type(found).__name__}, not a list of texts")
    if not all(isinstance(choice, str | int | float) for choice in found):
        raise BadRow("a choice of the row is not text")
    choices = tuple(str(choice).strip() for choice in found)
    if not all(choices) or len(set(choices)) < len(choices):
        raise BadRow("a choice of the row is empty or occurs twice")
    return choices


def _regress_answer(example: Example, template: int, prompt: str, target: str) -> Prompted:
    number = number_of(target)
    if number is None:
        raise BadRow(f"the target '{_short(target)}' is not a finite number")
    return Prompted(example, template, prompt, (), target, (), None, number)


def _generate_answer(example: Example, template: int, prompt: str, target: str) -> Prompted:
    if not target or target.isspace():
        raise BadRow("the target is empty")
    return Prompted(example, template, prompt, (), target, (), None, None)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _first_source(task: Task) -> tuple[Split, Source]:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        source = task.source(split)
        if source is not None:
            return split, source
    raise MultituneError(
        f"Task '{task.name}' has no data.", f"tasks.{task.name}", "Give it train, validation or test, or several."
    )


def _count_labels(task: Task, source: Source, folder: Path) -> Counter[str]:
    """Rows per label, over all rows; those that have none are left to be refused or skipped when they are prompted."""
    label = _raw_target(task)
    counts: Counter[str] = Counter()
    for example in read_examples(source, folder, BadRows()):
        try:
            counts[label(example)] += 1
        except BadRow:
            continue
        if len(counts) > MOST_CHOICES:
            raise MultituneError(
                f"Task '{task.name}' has more than {MOST_CHOICES} different labels.",
                f"tasks.{task.name}, {example.where}",
                "Set kind: generate for free text or kind: regress for numbers, or list the choices.",
            )
    counts.pop("", None)
    return counts


def _raw_target(task: Task) -> Callable[[Example], str]:
    if task.layout in CHAT_LAYOUTS:
        return lambda example: chat_messages(task.layout, example.fields)[-1].content.strip()
    target = compile_template(task.target[0], f"tasks.{task.name}.target")
    return lambda example: target(example.fields).strip()


def _counted_choices(
    task: Task, source: Source, folder: Path, counts: Counter[str]
) -> tuple[str, ...] | dict[str, str]:
    """The labels in order; names instead of numbers where the data set carries names."""
    if not counts:
        raise MultituneError(
            f"No row of task '{task.name}' has a label.", f"tasks.{task.name}.target", "Check the target template."
        )
    names = label_names(source, folder)
    for column, labels in names.items():
        if task.target and set(task.target) == {"{{ " + column + " }}"}:
            return {str(number): name for number, name in enumerate(labels)}
    numbers = {label: number_of(label) for label in counts}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(counts, key=lambda label: (numbers[label], label)))
    return tuple(sorted(counts))


def _check_metrics(task: Task) -> None:
    from multitune.tasks.metrics import metric

    for name in task.metrics:
        kinds = metric(name).kinds
        if task.kind not in kinds:
            raise MultituneError(
                f"The metric {name} is for tasks of kind {' or '.join(kinds)}, not {task.kind}.",
                f"tasks.{task.name}.metrics",
                "Take it out, or leave metrics empty for those of the kind.",
            )


def _empty(task: Task, split: Split, bad_rows: BadRows) -> MultituneError:
    key = f"tasks.{task.name}.{split}"
    if bad_rows.count:
        return bad_rows.refusal(f"Task '{task.name}' ({split}) has no usable row and", key)
    return MultituneError(
        f"Task '{task.name}' has no rows in its {split} split.", key, "Give a source with rows, or a larger fraction."
    )
