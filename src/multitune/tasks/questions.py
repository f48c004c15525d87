"""Rows without an answer, as a model is asked them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from multitune.errors import MultituneError
from multitune.tasks.bad_rows import BadRow, BadRows
from multitune.tasks.layouts import CHAT_LAYOUTS, chat_turns
from multitune.tasks.prompting import choice_list, is_resolved
from multitune.tasks.task import Example, Message, Prompted, Task
from multitune.tasks.templates import compile_expression, compile_template


def questions(task: Task, examples: Iterable[Example], bad_rows: BadRows) -> Iterator[Prompted]:
    """Yield rows as the task asks them, through its first template; what they hold of an answer is not looked at.

    Args:
        task: resolved, see ``prompting.resolve``.
        examples: with the fields that the prompt names, no others.
        bad_rows: counts the rows that cannot be asked; they are left out.

    Raises:
        MultituneError: the task leaves open how its rows are asked.
    """
    if not is_resolved(task):
        raise MultituneError(
            f"The task '{task.name}' does not say how its rows are asked.",
            f"tasks.{task.name}",
            "Give it prompt, target and kind (and choices), or its training data, from which they are read.",
        )
    ask = _asker(task)
    for example in examples:
        try:
            yield ask(example)
        except BadRow as error:
            bad_rows.add(example.where, error.reason)


def _asker(task: Task) -> Callable[[Example], Prompted]:
    choices = _choices(task)
    if task.layout in CHAT_LAYOUTS:

        def ask_chat(example: Example) -> Prompted:
            turns = chat_turns(task.layout, {"completion": [], **example.fields})  # a prompt may be a list of turns
            asked = turns[:-1] if turns[-1].role == "assistant" else turns
            return Prompted(example, 0, "", (*asked, Message("assistant", "")), "", choices(example), None, None)

        return ask_chat
    prompt = compile_template(task.prompt[0], f"tasks.{task.name}.prompt")
    return lambda example: Prompted(example, 0, prompt(example.fields), (), "", choices(example), None, None)


def _choices(task: Task) -> Callable[[Example], tuple[str, ...]]:
    if task.kind == "label":
        texts = task.choice_texts
        return lambda example: texts
    if task.kind == "choose":
        find = compile_expression(str(task.choices), f"tasks.{task.name}.choices")
        return lambda example: choice_list(find(example.fields))
    return lambda example: ()
