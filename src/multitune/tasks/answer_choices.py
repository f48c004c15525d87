"""Answers that a prompt offers for a row, written as one template with ||| between them, as promptsource has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from multitune.tasks.bad_rows import BadRow
from multitune.tasks.templates import compile_template

if TYPE_CHECKING:
    from multitune.tasks.task import Task

ANSWER_CHOICES = "answer_choices"
"""Name of the list in prompts and targets."""

BETWEEN = "|||"
_KEPT = "\ue001"
"""Stands for ||| of a field while the choices are cut apart."""

Fields = Mapping[str, Any]


def row_choices(task: Task) -> Callable[[Fields, int], dict[str, Any]]:
    """Return the function from a row's fields and a prompt's number to the fields with the prompt's answer choices.

    Fields of the row that hold ||| themselves come through whole. The function returns the row's own fields where the
    prompt has no choices; it raises `BadRow` where a choice is empty.
    """
    texts = task.answer_choices * len(task.prompt) if len(task.answer_choices) == 1 else task.answer_choices
    renders = [compile_template(text, f"tasks.{task.name}.answer_choices") if text else None for text in texts]

    def with_choices(fields: Fields, template: int) -> dict[str, Any]:
        render = renders[template] if renders else None
        if render is None:
            return fields  # type: ignore[return-value]
        found = [choice.strip().replace(_KEPT, BETWEEN) for choice in render(_without_bars(fields)).split(BETWEEN)]
        if not all(found):
            raise BadRow("one of the row's answer choices is empty")
        return {**fields, ANSWER_CHOICES: found}

    return with_choices


def _without_bars(value: Any) -> Any:
    """A value in whose texts nothing can be taken for the border of two choices."""
    if isinstance(value, str):
        return value.replace(BETWEEN, _KEPT)
    if isinstance(value, Mapping):
        return {name: _without_bars(item) for name, item in value.items()}
    return [_without_bars(item) for item in value] if isinstance(value, list | tuple) else value
