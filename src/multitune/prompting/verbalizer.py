"""Verbalisers: one word for every label, each one token of the model's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multitune.errors import MultituneError


@dataclass(frozen=True)
class Verbalizer:
    """Words that stand for labels.

    Attributes:
        labels: as the rows write them, as text; the order is that of the classes.
        words: one a label.
        bounds: (lowest, highest) value of a regression by two words, the first for the lowest; None for classes.
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]
    bounds: tuple[float, float] | None = None

    @property
    def mapping(self) -> dict[str, str]:
        """The words by label."""
        return dict(zip(self.labels, self.words, strict=True))

    def index(self, label: Any, where: str) -> int:
        """Return the class of a row's label.

        Raises:
            MultituneError: no word stands for it.
        """
        if str(label) not in self.labels:
            raise MultituneError(
                f"No word stands for the label {label!r}.",
                where,
                f"There are words for: {', '.join(self.labels)}; give this label one, or mend the row.",
            )
        return self.labels.index(str(label))

    def value(self, label: Any, where: str) -> float:
        """Return the number of a row of a regression.

        Raises:
            MultituneError: it is no number, or lies outside the bounds.
        """
        assert self.bounds is not None
        low, high = self.bounds
        try:
            value = float(label)
        except (TypeError, ValueError):
            value = float("nan")
        if not low <= value <= high:
            raise MultituneError(
                f"The value {label!r} is no number from {low:g} to {high:g}.", where, "Mend the row or the bounds."
            )
        return value

    def word_of(self, prediction: float) -> str:
        """Return the word of a predicted class, or of the half of the range in which a predicted value lies."""
        if self.bounds is None:
            return self.words[int(prediction)]
        return self.words[int(2 * prediction > sum(self.bounds))]


def classes(words: Mapping[Any, str], where: str = "words") -> Verbalizer:
    """Return the verbaliser of a mapping from label to word.

    Raises:
        MultituneError: fewer than two labels, an empty word, a word of two labels.
    """
    verbalizer = Verbalizer(tuple(str(label) for label in words), tuple(str(word).strip() for word in words.values()))
    if len(verbalizer.labels) < 2:
        raise MultituneError("A verbaliser needs two labels at least.", where, "Give words for the others too.")
    for label, word in verbalizer.mapping.items():
        if not word:
            raise MultituneError(f"The label '{label}' has no word.", where, "Give it one, such as 0=terrible.")
        if verbalizer.words.count(word) > 1:
            raise MultituneError(f"The word '{word}' stands for two labels.", where, "Give each label its own word.")
    return verbalizer


def regression(low_word: str, high_word: str, low: float, high: float, where: str = "words") -> Verbalizer:
    """Return the verbaliser of a value from ``low`` to ``high``, told by how likely two words are.

    Raises:
        MultituneError: bounds out of order, or an empty or doubled word.
    """
    if not low < high:
        raise MultituneError(f"The bounds {low:g} and {high:g} are out of order.", where, "Give the lower one first.")
    two = classes({f"{low:g}": low_word, f"{high:g}": high_word}, where)
    return Verbalizer(two.labels, two.words, (float(low), float(high)))


def token_of(tokenizer: Any, word: str, where: str = "words") -> int:
    """Return the token id of a word behind a space.

    Raises:
        MultituneError: the word is several tokens, or none that the vocabulary knows.
    """
    ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
    if len(ids) != 1:
        pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids)))
        raise MultituneError(
            f"The label word '{word}' is {len(ids)} tokens here ({pieces}).",
            where,
            "Choose a word that is one token of this tokenizer with a space before it.",
        )
    if ids[0] == tokenizer.unk_token_id:
        raise MultituneError(
            f"The tokenizer does not know the label word '{word}'.", where, "Choose a word of its vocabulary."
        )
    return int(ids[0])


def token_ids(tokenizer: Any, verbalizer: Verbalizer, where: str = "words") -> tuple[int, ...]:
    """Return the token id of every label's word.

    Raises:
        MultituneError: as ``token_of``; two words that the tokenizer writes as one token.
    """
    ids = tuple(token_of(tokenizer, word, where) for word in verbalizer.words)
    if len(set(ids)) < len(ids):
        raise MultituneError(
            f"Two label words are the same token here: {', '.join(verbalizer.words)}.",
            where,
            "The tokenizer ignores what tells them apart, such as capitals; choose others.",
        )
    return ids
