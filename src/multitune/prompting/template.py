"""Templates with one mask: which text of a row stands where, and which of it may be shortened."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from multitune.errors import MultituneError, nearest

MASK = "<mask>"
"""How a template writes the place of the label word, whatever the tokenizer calls its mask."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """A place of a template that a row's field fills.

    Attributes:
        name: of the field.
        shortenable: whether its text may be cut where the example is too long.
    """

    name: str
    shortenable: bool = True


@dataclass(frozen=True)
class Literal:
    """Words of the template itself, which are never cut."""

    text: str


@dataclass(frozen=True)
class Mask:
    """The place of the label word."""


Part = Field | Literal | Mask

_PIECES = re.compile(r"\{(?P<field>[^{}!]+)(?P<whole>!?)\}|(?P<mask><mask>)|(?P<text>[^{}<]+|.)")


@dataclass(frozen=True)
class Template:
    """A text with fields and exactly one mask, such as "{text} It was <mask> .".

    Attributes:
        text: as written. ``{name}`` is a field whose text may be shortened, ``{name!}`` one that is kept whole.
        parts: the same in order; parts are joined by single spaces and empty ones dropped.
    """

    text: str
    parts: tuple[Part, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, each once, in order."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def literals(self) -> tuple[str, ...]:
        """The template's own words, part by part."""
        return tuple(part.text for part in self.parts if isinstance(part, Literal))

    @property
    def ends_in_answer(self) -> bool:
        """Whether no field follows the mask, so that a causal model has read everything when it comes to the word."""
        place = next(n for n, part in enumerate(self.parts) if isinstance(part, Mask))
        return not any(isinstance(part, Field) for part in self.parts[place:])


def parse_template(text: str, where: str = "template") -> Template:
    """Return the template that a text describes.

    Raises:
        MultituneError: no mask or several, no field.
    """
    parts: list[Part] = []
    words = ""
    for found in [*_PIECES.finditer(text), None]:
        if found is not None and found["text"] is not None:
            words += found["text"]
            continue
        if cleaned(words):
            parts.append(Literal(cleaned(words)))
        words = ""
        if found is not None:
            parts.append(Mask() if found["mask"] else Field(found["field"].strip(), shortenable=not found["whole"]))
    masks = sum(isinstance(part, Mask) for part in parts)
    if masks != 1:
        told = "has no mask" if not masks else f"has {masks} masks"
        raise MultituneError(
            f"The template {told}: {text!r}.", where, f"Write {MASK} once, where the label word belongs."
        )
    template = Template(text, tuple(parts))
    if not template.fields:
        raise MultituneError(f"The template has no field: {text!r}.", where, "Write a field as {text}.")
    return template


def cleaned(value: Any) -> str:
    """Return a value as text on one line, its words parted by single spaces; None is no text."""
    return "" if value is None else " ".join(str(value).split())


def texts_of(template: Template, row: Row, where: str) -> dict[str, str]:
    """Return the texts of a row's fields that a template asks for.

    Raises:
        MultituneError: the row lacks one.
    """
    texts = {}
    for name in template.fields:
        if name not in row:
            raise MultituneError(
                f"The template asks for a field '{name}' that the row lacks.{nearest(name, row)}",
                where,
                f"The row has: {', '.join(map(str, row))}.",
            )
        texts[name] = cleaned(row[name])
    return texts


def filled(template: Template, row: Row, word: str, where: str = "row") -> str:
    """Return the line of a corpus: the template with its fields filled and a word in place of the mask."""
    texts = texts_of(template, row, where)
    return joined(
        word if isinstance(part, Mask) else part.text if isinstance(part, Literal) else texts[part.name]
        for part in template.parts
    )


def joined(parts: Iterable[str]) -> str:
    """Return parts joined by single spaces, empty ones dropped."""
    return " ".join(part for part in parts if part)
