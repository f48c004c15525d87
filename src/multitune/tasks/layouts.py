"""Layouts of rows that need no templates of the user's: recognised by their fields and said aloud."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multitune.errors import MultituneError
from multitune.tasks.answer_choices import ANSWER_CHOICES
from multitune.tasks.bad_rows import BadRow
from multitune.tasks.task import Example, Kind, Layout, Message, Task
from multitune.tasks.templates import compile_template, fields_needed, refuse_unknown_fields

Fields = Mapping[str, Any]

CHAT_LAYOUTS: tuple[Layout, ...] = ("messages", "sharegpt")

_CHAT_FIELDS = ("messages", "conversations", "conversation")
_INPUTS = ("input", "inputs", "question")
_TARGETS = ("target", "targets", "output", "answer")
_ALPACA_TARGETS = ("output", "target", "response")
_COMPLETIONS = ("completion", "response")
_CHOICES = ("choices", "options")

_MESSAGE_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class Templates:
    """The prompt and target that a layout reads its rows by; empty for chats."""

    prompt: str = ""
    target: str = ""


class Unrecognised(MultituneError):
    """The rows are of no layout that is known."""


def recognise(task: Task, first_rows: Sequence[Example]) -> Task:
    """Return the task with layout, kind, prompt and target settled from its first rows, as far as it leaves them open.

    Prompt and target of the user's own win over those of a layout; where only one of them is given, the layout gives
    the other. Choices of a label task are left to `prompting.resolve`, which counts them.

    Args:
        task: the task as written.
        first_rows: some rows, at least one.

    Raises:
        MultituneError: no layout fits (`Unrecognised`), or a template needs a field that none of these rows has.
    """
    rows = [example.fields for example in first_rows]
    layout, templates = _settle_layout(task, rows, first_rows[0].where)
    prompt = task.prompt or _as_often(templates.prompt, task.target)
    target = task.target or _as_often(templates.target, task.prompt)
    if len(target) == 1:
        target *= len(prompt)
    if len(prompt) == 1:
        prompt *= len(target)
    _check_fields(task, prompt, target, rows)
    choices = task.choices
    if choices is None and task.kind in (None, "choose"):
        choices = _choices_field(target, rows)
    kind = task.kind or _settle_kind(layout, choices, target, rows)
    return task.model_copy(
        update={"layout": layout, "prompt": prompt, "target": target, "choices": choices, "kind": kind}
    )


def chat_messages(layout: Layout, fields: Fields) -> tuple[Message, ...]:
    """Return the turns of a chat row.

    Raises:
        BadRow: no turns, an unknown role, content that is not text, or a last turn that is not the assistant's.
    """
    messages = chat_turns(layout, fields)
    if messages[-1].role != "assistant":
        raise BadRow(f"the last turn is of role '{messages[-1].role}', not the assistant's, so there is no target")
    return messages


def chat_turns(layout: Layout, fields: Fields) -> tuple[Message, ...]:
    """Return the turns of a chat row, whoever has the last word.

    Raises:
        BadRow: no turns, an unknown role, or content that is not text.
    """
    turns = _turns(fields)
    if not turns:
        raise BadRow("the chat has no turns")
    roles, role_key, content_key = (
        (_SHAREGPT_ROLES, "from", "value") if layout == "sharegpt" else (_MESSAGE_ROLES, "role", "content")
    )
    messages = [_message(place, turn, roles, role_key, content_key) for place, turn in enumerate(turns, start=1)]
    system = fields.get("system")
    if isinstance(system, str) and system.strip() and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    return tuple(messages)


def _message(place: int, turn: Any, roles: Mapping[str, str], role_key: str, content_key: str) -> Message:
    if not isinstance(turn, Mapping) or role_key not in turn or content_key not in turn:
        raise BadRow(f"turn {place} has no '{role_key}' and '{content_key}'")
    role = roles.get(str(turn[role_key]))
    if role is None:
        raise BadRow(f"turn {place} is of the unknown role '{turn[role_key]}'; known are {', '.join(roles)}")
    return Message(role, _content(place, turn[content_key]))


def _content(place: int, content: Any) -> str:
    """Text, or the parts {"type": "text", "text": ...} of a message joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise BadRow(f"the content of turn {place} is not text")


def _turns(fields: Fields) -> list[Any] | None:
    """The list of turns of a row: one field's, or a prompt's and a completion's that are lists of turns."""
    for name in _CHAT_FIELDS:
        if isinstance(fields.get(name), list):
            return fields[name]
    prompt, completion = fields.get("prompt"), fields.get("completion")
    return prompt + completion if isinstance(prompt, list) and isinstance(completion, list) else None


def _settle_layout(task: Task, rows: Sequence[Fields], where: str) -> tuple[Layout, Templates]:
    if task.prompt and task.target:
        return "fields" if task.layout == "auto" else task.layout, Templates()
    names = list(_LAYOUTS) if task.layout == "auto" else [task.layout]
    for name in names:
        if name in _LAYOUTS and (templates := _LAYOUTS[name](rows[0], task)) is not None:
            return name, templates
    known = ", ".join(rows[0])
    if task.layout in ("auto", "fields"):
        what = f"The layout of task '{task.name}' is not recognised; its rows have: {known}."
    else:
        what = f"The rows of task '{task.name}' are not of layout {task.layout}; they have: {known}."
    raise Unrecognised(what, where, "Give prompt and target, with fields written {{ field }}, or rename the fields.")


def _messages(row: Fields, task: Task) -> Templates | None:
    return _chat(row, task, {"role", "content"})


def _sharegpt(row: Fields, task: Task) -> Templates | None:
    return _chat(row, task, {"from", "value"})


def _chat(row: Fields, task: Task, keys: set[str]) -> Templates | None:
    turns = _turns(row)
    is_chat = bool(turns) and isinstance(turns[0], Mapping) and keys <= set(turns[0])  # type: ignore[index]
    return Templates() if is_chat and not (task.prompt or task.target) else None


def _alpaca(row: Fields, task: Task) -> Templates | None:
    target = _first(_ALPACA_TARGETS, row)
    if "instruction" not in row or target is None:
        return None
    if task.chat == "always":  # the chat template marks who speaks
        prompt = "{{ instruction }}{% if input is defined and input %}\n\n{{ input }}{% endif %}"
    else:
        prompt = (
            "### Instruction:\n{{ instruction }}\n\n"
            "{% if input is defined and input %}### Input:\n{{ input }}\n\n{% endif %}### Response:\n"
        )
    return Templates(prompt, _field(target))


def _prompt_completion(row: Fields, task: Task) -> Templates | None:
    completion = _first(_COMPLETIONS, row)
    return None if "prompt" not in row or completion is None else Templates("{{ prompt }}", _field(completion))


def _input_target(row: Fields, task: Task) -> Templates | None:
    source, target = _first(_INPUTS, row), _first(_TARGETS, row)
    return None if source is None or target is None else Templates(_field(source), _field(target))


def _text_label(row: Fields, task: Task) -> Templates | None:
    return Templates("{{ text }}", "{{ label }}") if "text" in row and "label" in row else None


_LAYOUTS: dict[Layout, Callable[[Fields, Task], Templates | None]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "input_target": _input_target,
    "text_label": _text_label,
}
"""In the order in which they are tried."""


def _first(names: Sequence[str], row: Fields) -> str | None:
    return next((name for name in names if name in row), None)


def _field(name: str) -> str:
    return "{{ " + name + " }}"


def _as_often(template: str, other: tuple[str, ...]) -> tuple[str, ...]:
    """A layout's template once for every one that the user gave for the other side; () where it has none."""
    return (template,) * max(1, len(other)) if template else ()


def _check_fields(task: Task, prompt: Sequence[str], target: Sequence[str], rows: Sequence[Fields]) -> None:
    known = list(dict.fromkeys(field for row in rows for field in row))
    known += [ANSWER_CHOICES] if task.answer_choices else []
    for key, templates in (("prompt", prompt), ("target", target)):
        where = f"tasks.{task.name}.{key}"
        for template in templates:
            refuse_unknown_fields(fields_needed(template, where), known, where)


def _choices_field(target: Sequence[str], rows: Sequence[Fields]) -> str | None:
    """A field of all rows that lists choices with the target among them."""
    for name in _CHOICES if target else ():
        if all(isinstance(row.get(name), list) for row in rows):
            answer = compile_template(target[0], "target")
            if all(_rendered(answer, row) in [str(choice).strip() for choice in row[name]] for row in rows):
                return name
    return None


def _settle_kind(layout: Layout, choices: Any, target: Sequence[str], rows: Sequence[Fields]) -> Kind:
    if choices is not None:
        return "choose" if isinstance(choices, str) else "label"
    if layout != "text_label":
        return "generate"
    label = compile_template(target[0], "target")
    answers = [answer for row in rows if (answer := _rendered(label, row)) is not None]
    return "regress" if _measured(answers) else "label"


def _rendered(template: Callable[[Fields], str], row: Fields) -> str | None:
    try:
        return template(row).strip()
    except BadRow:
        return None


def _measured(answers: Sequence[str]) -> bool:
    """Whether all are finite numbers and one of them is not a whole one."""
    numbers = [number_of(answer) for answer in answers]
    return all(number is not None for number in numbers) and any(number % 1 for number in numbers if number is not None)


def number_of(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def explanation(written: Task, resolved: Task, counts: Mapping[str, int]) -> str:
    """One line on what was inferred for a task; "" when its author left nothing open.

    Args:
        written: the task as its author wrote it.
        resolved: the same after `recognise`.
        counts: rows per choice, where choices were counted.
    """
    said = []
    if written.layout == "auto" and resolved.layout != "fields":
        said.append(f"layout {resolved.layout}")
    for key in ("prompt", "target"):
        given, found = getattr(written, key), getattr(resolved, key)
        if found and not given:
            said.append(f"{key} {found[0]!r}")
    if written.kind is None:
        said.append(f"kind {resolved.kind}")
    if written.choices is None and isinstance(resolved.choices, str):
        said.append(f"choices from the field '{resolved.choices}'")
    elif written.choices is None and resolved.choices:
        listed = [f"{text} ({counts.get(text, 0)})" for text in resolved.choice_texts]
        more = f", and {len(listed) - 10} more" if len(listed) > 10 else ""
        said.append(f"{len(listed)} choices: {', '.join(listed[:10])}{more}")
    return f"task {written.name}: {'; '.join(said)}" if said else ""
