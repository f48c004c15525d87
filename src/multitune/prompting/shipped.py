"""Prompts by the name of their data set: the hard templates and label words of LM-BFF and PCP.

Labels are the data sets' own; their order matters where they are written as words elsewhere. IMDB's words run against
those of SST-2: its label 0 is the good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multitune.errors import MultituneError, nearest
from multitune.prompting.template import Template, parse_template
from multitune.prompting.verbalizer import Verbalizer, classes, regression

_SENTIMENT = {"0": "terrible", "1": "great"}
_NO_YES = {"0": "No", "1": "Yes"}
_ENTAILMENT = {"contradiction": "No", "entailment": "Yes", "neutral": "Maybe"}
_STARS = {str(star): str(star) for star in range(5)}
_TREC = ("Description", "Entity", "Expression", "Human", "Location", "Number")
_AG = ("world", "sports", "business", "tech")
_YAHOO = (
    "culture",
    "science",
    "health",
    "education",
    "computer",
    "sports",
    "business",
    "music",
    "family",
    "politics",
)
_IT_WAS = "{a} It was <mask> ."


def _numbered(words: tuple[str, ...]) -> dict[str, str]:
    return {str(place): word for place, word in enumerate(words)}


SHIPPED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sst-2": (_IT_WAS, _SENTIMENT),
    "sst-5": (_IT_WAS, _numbered(("terrible", "bad", "okay", "good", "great"))),
    "mr": (_IT_WAS, _SENTIMENT),
    "cr": (_IT_WAS, _SENTIMENT),
    "mpqa": ("{a} is <mask> .", {"0": "negative", "1": "positive"}),
    "subj": ("{a} This is <mask> .", {"0": "subjective", "1": "objective"}),
    "trec": ("<mask> : {a}", _numbered(_TREC)),
    "cola": ("{a} This is <mask>", {"0": "incorrect", "1": "correct"}),
    "mrpc": ("{a} <mask> , {b}", _NO_YES),
    "qqp": ("{a} <mask> , {b}", _NO_YES),
    "sts-b": ("{a} <mask> , {b}", {"0": "No", "5": "Yes"}),
    "mnli": ("{a} ? <mask> , {b}", _ENTAILMENT),
    "qnli": ("{a} ? <mask> , {b}", {"not_entailment": "No", "entailment": "Yes"}),
    "snli": ("{a} . <mask> , in this case {b}", _ENTAILMENT),
    "rte": ("{a} . <mask> , I think that {b}", {"not_entailment": "Yet", "entailment": "Clearly"}),
    "imdb": (_IT_WAS, {"0": "great", "1": "terrible"}),
    "ag-news": (_IT_WAS, _numbered(_AG)),
    "yelp": (_IT_WAS, _STARS),
    "amazon": (_IT_WAS, _STARS),
    "yahoo": (_IT_WAS, _numbered(_YAHOO)),
}
"""Template over the fields a and b, and words by label. Of sts-b the labels are the bounds of a value."""

REGRESSIONS = ("sts-b",)

SOFT_SINGLE, SOFT_PAIR = "{a} It was <mask>", "{a} <mask> , {b}"
"""Whose words become soft tokens, and whose plain words a soft prompt's corpus takes: single texts, pairs."""


def shipped_prompt(
    name: str, fields: tuple[str, ...] = ("a", "b"), *, soft: bool = False
) -> tuple[Template, Verbalizer]:
    """Return a data set's template over fields of these names, and its words.

    Args:
        name: as in ``SHIPPED``.
        fields: what the rows call the text, or the two texts.
        soft: the template of soft prompts in place of the hard one.

    Raises:
        MultituneError: no such name; a pair of texts is wanted and one field is named.
    """
    if name not in SHIPPED:
        raise MultituneError(
            f"There is no prompt named '{name}'.{nearest(name, SHIPPED)}",
            "template",
            f"Name one of {', '.join(SHIPPED)}, or write a template with {{field}} and <mask>.",
        )
    text, words = SHIPPED[name]
    if soft:
        text = SOFT_PAIR if "{b}" in text else SOFT_SINGLE
    return parse_template(renamed(text, fields, name), name), _verbalizer(name, words)


def renamed(text: str, fields: tuple[str, ...], name: str) -> str:
    """Return a shipped template with the rows' own names in place of a and b."""
    if "{b}" in text and len(fields) < 2:
        raise MultituneError(
            f"The prompt '{name}' is for pairs of texts, and one field is named.",
            "fields",
            "Name the two fields in their order.",
        )
    own: dict[str, Any] = dict(zip("ab", fields, strict=False))
    for letter, field in own.items():
        text = text.replace(f"{{{letter}}}", f"\0{field}\1")
    return text.replace("\0", "{").replace("\1", "}")


def _verbalizer(name: str, words: Mapping[str, str]) -> Verbalizer:
    if name in REGRESSIONS:
        (low, low_word), (high, high_word) = words.items()
        return regression(low_word, high_word, float(low), float(high), name)
    return classes(words, name)
