"""Prompt and target templates: Jinja2 over the fields of a row, in a sandbox.

Templates come from recipes that people share, so they reach nothing but the row: no Python internals, no files, no
functions but text methods, bounded repetition. What a row holds is only ever a value and never read as a template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time
from functools import lru_cache
from numbers import Number
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError, nearest
from multitune.tasks.bad_rows import BadRow

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Fields = Mapping[str, Any]
Render = Callable[[Fields], str]

LONGEST_REPEAT = 100_000
"""Characters, items or rounds that one `*` or `range` in a template may make."""

WHOLE_ROW = "row"
"""Name of the whole row in a template, for fields whose names are no words: `{{ row["Sentence 1"] }}`."""

SEPARATOR = "\ue000|||\ue000"
"""Between input and target of a template that writes both; no text holds Unicode's private letters by chance."""

# Filters that reach attributes by name, make text of any length from a number, or answer differently every time.
_LEFT_OUT_FILTERS = ("attr", "batch", "center", "format", "indent", "pprint", "random", "slice", "urlize", "xmlattr")
# fmt: off
_TEXT_METHODS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "upper", "get", "items", "keys", "values",
))
# fmt: on


@lru_cache(maxsize=4096)
def compile_template(text: str, where: str) -> Render:
    """Compile a template to a function from a row's fields to text; white space is kept as written.

    The function raises `BadRow` where a row lacks a field, or a field is null, a list or anything else that is not text
    or a number, and `MultituneError` where the template reaches for what the sandbox keeps from it.

    Args:
        text: the template.
        where: key of the recipe, for errors: "tasks.sst2.prompt".

    Raises:
        MultituneError: the template is not valid, or names what it may not reach.
    """
    plain = _plain_parts(_parse(text, where))
    return _by_joining(plain) if plain is not None else _by_jinja(text, where)


def compile_expression(text: str, where: str) -> Callable[[Fields], Any]:
    """Compile a field's name, or one `{{ expression }}`, to a function from a row's fields to its value.

    Raises:
        MultituneError: as `compile_template`.
    """
    from jinja2 import TemplateSyntaxError

    inner = text.strip()
    if inner.startswith("{{") and inner.endswith("}}"):
        inner = inner[2:-2].strip()
    _parse("{{ " + inner + " }}", where)
    try:
        expression = environment().compile_expression(inner, undefined_to_none=False)
    except TemplateSyntaxError as error:
        raise _invalid(text, where, str(error)) from error

    def evaluate(fields: Fields) -> Any:
        with_row = {WHOLE_ROW: fields, **fields}
        value = _guarded(lambda: expression(with_row), where)
        if type(value).__name__.endswith("Undefined"):
            raise BadRow(f"the row has no '{inner}'")
        return value

    return evaluate


def fields_needed(text: str, where: str) -> set[str]:
    """Names that a template takes from the row, without those it asks about (`is defined`, `default`)."""
    from jinja2 import meta, nodes

    tree = _parse(text, where)
    asked: set[str] = set()
    for test in tree.find_all(nodes.Test):
        if test.name in ("defined", "undefined"):
            asked |= {name.name for name in test.find_all(nodes.Name)}
    for found in tree.find_all(nodes.Filter):
        if found.name in ("default", "d") and isinstance(found.node, nodes.Name):
            asked.add(found.node.name)
    return meta.find_undeclared_variables(tree) - asked - set(environment().globals) - {WHOLE_ROW}


def refuse_unknown_fields(needed: set[str], known: list[str], where: str) -> None:
    """Refuse a template field that no row has.

    Raises:
        MultituneError: with the fields that exist and the nearest of them.
    """
    for name in sorted(needed - set(known)):
        raise MultituneError(
            f"The template needs a field '{name}' that no row has.{nearest(name, known)}",
            where,
            f"The rows have: {', '.join(known)}.",
        )


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox: strict about missing fields, nothing global but a short `range`, text methods only."""
    from jinja2 import StrictUndefined, Undefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class RowSandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def getattr(self, obj: Any, attribute: str) -> Any:
            """A field of a nested object by its name, also when it is called `items` or `values`."""
            if isinstance(obj, Mapping) and attribute in obj:
                return obj[attribute]
            return super().getattr(obj, attribute)

        def call(self, context: Any, function: Any, *arguments: Any, **options: Any) -> Any:
            """Call a text method or `range`; anything else is out of reach."""
            if not isinstance(function, Undefined):  # calling what is missing says that it is missing
                name = getattr(function, "__name__", type(function).__name__)
                owner = getattr(function, "__self__", None)
                is_method = isinstance(owner, str | Mapping | list | tuple) and name in _TEXT_METHODS
                if not is_method and function is not _short_range:
                    raise SecurityError(f"'{name}' may not be called")
            return context.call(function, *arguments, **options)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**":
                raise SecurityError("powers are not computed in templates")
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > LONGEST_REPEAT:
                    raise SecurityError(f"'*' may make at most {LONGEST_REPEAT} characters or items")
            return super().call_binop(context, operator, left, right)

    sandbox = RowSandbox(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_text_or_number)
    sandbox.globals = {"range": _short_range}
    for name in _LEFT_OUT_FILTERS:
        del sandbox.filters[name]
    sandbox.filters |= {"tojson": _as_json, "join": _join, "input_part": _input_part, "target_part": _target_part}
    return sandbox


def _as_json(value: Any) -> str:
    """Jinja2's own filter writes `<` and `'` as escapes for web pages, which no model should read."""
    return json.dumps(value, ensure_ascii=False)


def _join(values: Iterable[Any], between: str = "") -> str:
    """Jinja2's own filter prints whatever is in the list, as Python writes it."""
    return between.join(str(_text_or_number(value)) for value in values)


def _input_part(text: str) -> str:
    """What stands before the separator, without white space around it."""
    return _parts(text)[0]


def _target_part(text: str) -> str:
    """What stands after the separator, without white space around it."""
    return _parts(text)[1]


def _parts(text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(SEPARATOR)]
    if len(parts) != 2:
        raise BadRow("the template leaves this row out" if len(parts) < 2 else f"the row has {len(parts) - 1} targets")
    return parts[0], parts[1]


def _short_range(*arguments: int) -> range:
    from jinja2.sandbox import SecurityError

    numbers = range(*arguments)
    if len(numbers) > LONGEST_REPEAT:
        raise SecurityError(f"'range' may count at most {LONGEST_REPEAT} numbers")
    return numbers


def _text_or_number(value: Any) -> Any:
    """What is printed as it is; anything else is a mistake in the template or the row."""
    if isinstance(value, str | Number | date | time):
        return value
    if value is None:
        raise BadRow("a field of the template is null")
    if isinstance(value, list | tuple):
        raise BadRow("a field of the template is a list, not text; join it: {{ field | join(' ') }}")
    if type(value).__name__.endswith("Undefined"):
        return str(value)  # raises, and says what is missing
    raise BadRow(f"a field of the template is of type {type(value).__name__}, not text")


def _by_joining(parts: list[tuple[str, str]]) -> Render:
    """The same as Jinja2, several times faster, for a template of text and bare fields only.

    Args:
        parts: (text, field that follows it) in order; field "" follows the last text.
    """

    def render(fields: Fields) -> str:
        pieces = []
        for text, name in parts:
            pieces.append(text)
            if name:
                try:
                    value = fields[name]
                except KeyError:
                    raise BadRow(f"the row has no field '{name}'") from None
                pieces.append(value if type(value) is str else str(_text_or_number(value)))
        return "".join(pieces)

    return render


def _by_jinja(text: str, where: str) -> Render:
    template = environment().from_string(text)

    def render(fields: Fields) -> str:
        return _guarded(lambda: template.render({WHOLE_ROW: fields, **fields}), where)

    return render


def _guarded(render: Callable[[], Any], where: str) -> Any:
    from jinja2 import UndefinedError
    from jinja2.sandbox import SecurityError

    try:
        return render()
    except SecurityError as error:
        raise _out_of_reach(where, str(error)) from error
    except UndefinedError as error:
        raise BadRow(f"the row lacks a field of the template: {error}") from error
    except (BadRow, MultituneError):
        raise
    except Exception as error:  # whatever an expression over foreign values can raise
        raise BadRow(f"the template fails on this row: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=4096)
def _parse(text: str, where: str) -> nodes.Template:
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = environment().parse(text)
        environment().compile(text)  # unknown filters and tests are found here
    except TemplateSyntaxError as error:
        raise _invalid(text, where, f"{error.message} (line {error.lineno})") from error
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise _out_of_reach(where, f"'{type(node).__name__.lower()}' reads other templates")
    for name in _attributes(tree):
        if name.startswith("__"):
            raise _out_of_reach(where, f"'{name}' is not part of a row")
    return tree


def _attributes(tree: nodes.Template) -> Iterator[str]:
    from jinja2 import nodes

    for node in tree.find_all(nodes.Getattr):
        yield node.attr
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            yield item.arg.value


def _plain_parts(tree: nodes.Template) -> list[tuple[str, str]] | None:
    """(text, field) pairs of a template that holds nothing else, or None."""
    from jinja2 import nodes

    parts: list[tuple[str, str]] = []
    text = ""
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                text += node.data
            elif isinstance(node, nodes.Name) and node.name not in {WHOLE_ROW, "self", *environment().globals}:
                parts.append((text, node.name))
                text = ""
            else:
                return None
    return [*parts, (text, "")]


def _invalid(text: str, where: str, reason: str) -> MultituneError:
    return MultituneError(
        f"The template is not valid Jinja2: {reason}", f"{where}: {text!r}", "Fields are written {{ field }}."
    )


def _out_of_reach(where: str, reason: str) -> MultituneError:
    return MultituneError(
        f"The template reaches for what templates may not reach: {reason.rstrip('.')}.",
        where,
        "Use only the fields of the row, filters and text methods.",
    )
