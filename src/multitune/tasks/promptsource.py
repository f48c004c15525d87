"""Templates of promptsource (Bach et al. 2022, arXiv:2202.01279): YAML files of named prompts for a data set.

A template writes input and target at once, with ||| between them:

    {{ premise }} Does it follow that {{ hypothesis }}? ||| {{ answer_choices[label] }}

Fields that hold ||| themselves are no border: the separator is told by its place in the template, not in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from multitune.errors import MultituneError, nearest
from multitune.tasks.answer_choices import ANSWER_CHOICES, BETWEEN
from multitune.tasks.templates import SEPARATOR, compile_template, environment


@dataclass(frozen=True)
class PromptTemplate:
    """One prompt for a data set.

    Attributes:
        name: unique in its file.
        prompt, target: templates of a task.
        answer_choices: template of the choices with ||| between, "" where the answer is free text.
        original_task: whether it asks what the data set was made for.
        choices_in_prompt: whether the prompt lists the choices.
        languages, metrics: as the file says.
    """

    name: str
    prompt: str
    target: str
    answer_choices: str = ""
    original_task: bool = True
    choices_in_prompt: bool = False
    languages: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A template of a file that cannot be used, and why."""

    name: str
    reason: str


class _Loader(yaml.SafeLoader):
    """YAML with promptsource's two tags, read as plain mappings."""


def _plain_mapping(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[Any, Any]:
    if suffix not in ("Template", "TemplateMetadata") or not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, f"the tag !{suffix} is not promptsource's", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_multi_constructor("!", _plain_mapping)


def read_templates(path: Path, only: Sequence[str] = ()) -> tuple[list[PromptTemplate], list[Refused]]:
    """Return the templates of a promptsource file, by name, and those that the sandbox cannot run.

    Args:
        path: a ``templates.yaml``.
        only: names of those wanted, in the order wanted; () takes all.

    Raises:
        MultituneError: no such file, no YAML, no templates, a name that the file lacks, or a wanted template that is
            refused.
    """
    entries = _entries(path)
    if only:
        for name in only:
            if name not in entries:
                raise MultituneError(
                    f"There is no template '{name}'.{nearest(name, entries)}",
                    str(path),
                    f"Use some of: {', '.join(entries)}.",
                )
        entries = {name: entries[name] for name in only}
    found, refused = [], []
    for name, entry in entries.items():
        try:
            found.append(_template(name, entry, path))
        except MultituneError as error:
            if only:
                raise
            refused.append(Refused(name, error.what))
    if not found:
        raise MultituneError(
            "The file has no template that can be used.", str(path), "Write templates: {id: {name: ..., jinja: ...}}."
        )
    return found, refused


def split_template(text: str, where: str) -> tuple[str, str]:
    """Return the prompt and target templates of one that writes both.

    Where the separator stands in the open, the template is cut there; where it stands inside a condition or loop, or
    names are set before it, each part runs the whole and keeps its own side.

    Raises:
        MultituneError: no valid Jinja2, or no separator.
    """
    from jinja2 import TemplateSyntaxError, nodes

    try:
        marked = "".join(
            value.replace(BETWEEN, SEPARATOR) if kind == "data" else value for _, kind, value in environment().lex(text)
        )
        tree = environment().parse(marked)
    except TemplateSyntaxError as error:
        raise MultituneError(
            f"The template is not valid Jinja2: {error.message}", where, "Fields are written {{ field }}."
        ) from error
    if SEPARATOR not in marked:
        raise MultituneError("The template has no ||| between input and target.", where, "Write input ||| target.")
    open_places = sum(
        piece.data.count(SEPARATOR)
        for statement in tree.body
        if isinstance(statement, nodes.Output)
        for piece in statement.nodes
        if isinstance(piece, nodes.TemplateData)
    )
    sets_names = any(isinstance(one, nodes.Assign | nodes.AssignBlock | nodes.Macro) for one in tree.body)
    if marked.count(SEPARATOR) == open_places == 1 and not sets_names:
        prompt, target = marked.split(SEPARATOR)
        return prompt.strip(), target.strip()
    return (
        "{% filter input_part %}" + marked + "{% endfilter %}",
        "{% filter target_part %}" + marked + "{% endfilter %}",
    )


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Return the file's templates by name."""
    if not path.is_file():
        raise MultituneError(f"There is no file '{path.name}'.", str(path), "Correct the path.")
    try:
        told = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MultituneError(
            f"The file is not promptsource's YAML: {str(error).splitlines()[0]}.", str(path), "Mend or replace it."
        ) from error
    templates = told.get("templates") if isinstance(told, dict) else None
    if not isinstance(templates, dict) or not templates:
        raise MultituneError("The file has no templates.", str(path), "Give a templates.yaml of promptsource.")
    entries: dict[str, dict[str, Any]] = {}
    for key, entry in templates.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("jinja"), str):
            raise MultituneError("A template has no text.", f"{path}, templates.{key}", "Give it jinja: ...")
        name = str(entry.get("name") or key)
        if name in entries:
            raise MultituneError(f"Two templates are called '{name}'.", str(path), "Rename one.")
        entries[name] = entry
    return entries


def _template(name: str, entry: dict[str, Any], path: Path) -> PromptTemplate:
    where = f"{path}, {name}"
    prompt, target = split_template(entry["jinja"], where)
    choices = str(entry.get(ANSWER_CHOICES) or "")
    for text in (prompt, target, choices):
        compile_template(text, where)
        _refuse_unknown_functions(text, where)
    metadata = entry.get("metadata") or {}
    return PromptTemplate(
        name,
        prompt,
        target,
        choices,
        original_task=metadata.get("original_task") is not False,
        choices_in_prompt=bool(metadata.get("choices_in_prompt")),
        languages=tuple(map(str, metadata.get("languages") or ())),
        metrics=tuple(map(str, metadata.get("metrics") or ())),
    )


def _refuse_unknown_functions(text: str, where: str) -> None:
    """Refuse what promptsource's own environment offers and the sandbox does not, such as a random choice."""
    from jinja2 import nodes

    for call in environment().parse(text).find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name not in environment().globals:
            raise MultituneError(
                f"The template calls '{call.node.name}', which templates do not have here.", where, "Leave it out."
            )
