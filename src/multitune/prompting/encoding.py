"""A prompt in the tokens of one tokenizer: rows become token ids, and only their own text is ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from multitune.errors import MultituneError
from multitune.prompting.template import Field, Literal, Mask, Part, Row, Template, filled, texts_of
from multitune.prompting.verbalizer import Verbalizer, token_ids


@dataclass(frozen=True)
class PromptEncoder:
    """What a tokenizer makes of a template and its label words.

    Attributes:
        template: the fields and the mask.
        verbalizer: the words.
        tokenizer: of the model.
        literals: token ids of each of the template's own texts, in order; of soft prompts the tokens added for them.
        label_ids: token id of every class's word; of soft prompts the tokens added for them.
        mask_id: None for a causal model, which writes the word behind all that it has read.
        prefix, suffix: token ids that the tokenizer puts around a text.
    """

    template: Template
    verbalizer: Verbalizer
    tokenizer: Any
    literals: tuple[tuple[int, ...], ...]
    label_ids: tuple[int, ...]
    mask_id: int | None
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def own_tokens(self) -> int:
        """Tokens that are never cut: the template's words, the mask, and what the tokenizer puts around."""
        around = len(self.prefix) + (len(self.suffix) + 1 if self.mask_id is not None else 0)
        return around + sum(map(len, self.literals))

    def encode(self, rows: Sequence[Row], max_length: int) -> list[list[int]]:
        """Return the token ids of rows, each with exactly one mask; without any for a causal model.

        Every text is read as if a space stood before it, also at the beginning. A row that is too long loses tokens at
        the end of its longest shortenable text, one by one.

        Raises:
            MultituneError: the template alone, or with fields that may not be cut, does not fit.
        """
        texts = [texts_of(self.template, row, f"row {n}") for n, row in enumerate(rows, start=1)]
        ids_by_field = {
            name: tokens_of_texts(self.tokenizer, [text[name] for text in texts]) for name in self.template.fields
        }
        return [
            self._assembled({name: ids[n] for name, ids in ids_by_field.items()}, max_length, n)
            for n in range(len(rows))
        ]

    def shortened(self, rows: Sequence[Row], max_length: int) -> list[Row]:
        """Return rows whose filled templates have at most ``max_length`` tokens; a fast tokenizer is needed.

        Texts are cut in their letters where ``encode`` cuts them in their tokens.
        """
        short: list[Row] = []
        for n, row in enumerate(rows):
            texts = texts_of(self.template, row, f"row {n + 1}")
            spans = {name: _spans(self.tokenizer, text) for name, text in texts.items()}
            kept = self._kept({name: len(ends) for name, ends in spans.items()}, max_length, n)
            cut = {
                name: f" {texts[name]}"[: ends[kept[name] - 1]] if kept[name] else "" for name, ends in spans.items()
            }
            whole = all(kept[name] == len(ends) for name, ends in spans.items())
            short.append(row if whole else {**row, **cut})
        return short

    def _kept(self, lengths: dict[str, int], max_length: int, n: int) -> dict[str, int]:
        """Return how many tokens of each field stay, taken from the longest first."""
        places = [part for part in self.template.parts if isinstance(part, Field)]
        kept = dict(lengths)
        shortenable = {part.name for part in places if part.shortenable}
        times = {name: sum(part.name == name for part in places) for name in lengths}
        # the mask of a causal model is not read, but its word needs the place in a filled line
        own = self.own_tokens + (1 if self.mask_id is None else 0)
        over = own + sum(times[name] * kept[name] for name in kept) - max_length
        while over > 0:
            longest = max(sorted(shortenable), key=lambda name: kept[name], default=None)
            if longest is None or not kept[longest]:
                raise MultituneError(
                    f"The template takes more than the {max_length} tokens of an example, without any text.",
                    f"row {n + 1}, template {self.template.text!r}",
                    "Raise the longest length, or shorten the template.",
                )
            others = sorted((kept[name] for name in shortenable if name != longest), reverse=True)
            # down to the second longest in one go
            step = max(1, min(-(-over // times[longest]), kept[longest] - (others[0] if others else 0)))
            kept[longest] -= step
            over -= step * times[longest]
        return kept

    def _assembled(self, ids: dict[str, list[int]], max_length: int, n: int) -> list[int]:
        kept = self._kept({name: len(each) for name, each in ids.items()}, max_length, n)
        literals = iter(self.literals)
        tokens = list(self.prefix)
        for part in self.template.parts:
            if isinstance(part, Field):
                tokens += ids[part.name][: kept[part.name]]
            elif isinstance(part, Literal):
                tokens += next(literals)
            elif self.mask_id is None:
                return tokens  # what follows the word is written by nobody
            else:
                tokens.append(self.mask_id)
        return tokens + list(self.suffix)

    def mismatched(self, rows: Sequence[Row], words: Sequence[str]) -> list[int]:
        """Return the places of rows whose corpus line has other tokens than their filled template.

        A model would then learn from tokens that it is not asked with.
        """
        of_lines = tokens_of_texts(
            self.tokenizer, [filled(self.template, row, word) for row, word in zip(rows, words, strict=True)]
        )
        texts = [texts_of(self.template, row, f"row {n}") for n, row in enumerate(rows, start=1)]
        fields = {
            name: tokens_of_texts(self.tokenizer, [text[name] for text in texts]) for name in self.template.fields
        }
        own_texts = [*self.template.literals, *self.verbalizer.words]
        own = dict(zip(own_texts, tokens_of_texts(self.tokenizer, own_texts), strict=True))

        def tokens(part: Part, n: int) -> list[int]:
            if isinstance(part, Field):
                return fields[part.name][n]
            return own[part.text if isinstance(part, Literal) else words[n]]

        whole = [[token for part in self.template.parts for token in tokens(part, n)] for n in range(len(rows))]
        return [n for n in range(len(rows)) if whole[n] != of_lines[n]]


def encoder_of(
    tokenizer: Any, template: Template, verbalizer: Verbalizer, *, causal: bool = False, soft: bool = False
) -> PromptEncoder:
    """Return the encoder of a prompt for a tokenizer.

    Args:
        tokenizer: of the model; of soft prompts with the tokens that ``add_soft_tokens`` adds.
        template: what is asked.
        verbalizer: what is answered.
        causal: the label word continues the text in place of filling a mask (an extension of the published method).
        soft: whether the template's and the labels' tokens are the added ones.

    Raises:
        MultituneError: a tokenizer without mask, a word of several tokens, a field behind a causal model's mask.
    """
    if not causal and tokenizer.mask_token_id is None:
        raise MultituneError(
            "The tokenizer has no mask token, so the model fills no mask.",
            f"tokenizer {tokenizer.name_or_path}",
            "Take a masked language model such as roberta-large, or load it as a causal one.",
        )
    if causal and not template.ends_in_answer:
        raise MultituneError(
            f"A causal model would answer before it has read everything: {template.text!r}.",
            "template",
            "Put the mask behind all fields.",
        )
    label_ids = token_ids(tokenizer, verbalizer)
    literals = tuple(tuple(each) for each in tokens_of_texts(tokenizer, template.literals))
    if soft:
        literals, label_ids = _soft(tokenizer, literals, len(label_ids))
    if causal:  # what stands behind the mask is not read
        literals = literals[: _literals_before_mask(template)]
    prefix, suffix = around(tokenizer)
    mask_id = None if causal else int(tokenizer.mask_token_id)
    return PromptEncoder(template, verbalizer, tokenizer, literals, label_ids, mask_id, prefix, suffix)


SOFT_WORD, SOFT_LABEL = "<|prompt-{}|>", "<|label-{}|>"
"""Names of the added tokens; they are saved with the tokenizer."""


def _soft(
    tokenizer: Any, literals: tuple[tuple[int, ...], ...], labels: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Return the added tokens in the places of those that they replace."""
    count = 0
    replaced = []
    for literal in literals:
        names = [SOFT_WORD.format(count + place) for place in range(len(literal))]
        replaced.append(tuple(tokenizer.convert_tokens_to_ids(names)))
        count += len(literal)
    label_ids = tuple(tokenizer.convert_tokens_to_ids([SOFT_LABEL.format(place) for place in range(labels)]))
    known = set(tokenizer.get_added_vocab().values())
    if not known.issuperset({*label_ids, *(token for each in replaced for token in each)}):
        raise MultituneError(
            "The tokenizer lacks the tokens of this soft prompt.",
            f"tokenizer {tokenizer.name_or_path}",
            "Load the tokenizer that was saved with the model, or add the tokens with add_soft_tokens.",
        )
    return tuple(replaced), label_ids


def _literals_before_mask(template: Template) -> int:
    place = next(n for n, part in enumerate(template.parts) if isinstance(part, Mask))
    return sum(isinstance(part, Literal) for part in template.parts[:place])


def around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the token ids that the tokenizer puts before and behind a text."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    start = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])


def tokens_of_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts, each read behind a space; what looks like a special token in them is left out."""
    if not texts:
        return []
    special = special_ids(tokenizer)
    encoded = tokenizer([f" {text}" if text else "" for text in texts], add_special_tokens=False, verbose=False)
    return [[token for token in ids if token not in special] for ids in encoded.input_ids]


def special_ids(tokenizer: Any) -> set[int]:
    """Return the token ids that no text of a row may hold: those that mean something to the model, without unknown."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _spans(tokenizer: Any, text: str) -> list[int]:
    """Return where every token of a text ends in it, in letters, counted with the space before it."""
    if not text:
        return []
    special = special_ids(tokenizer)
    read = tokenizer(f" {text}", add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = [span for token, span in zip(read.input_ids, read.offset_mapping, strict=True) if token not in special]
    # a letter of several bytes may be several tokens: a cut within it cuts before it
    return [min(end, after) for (_, end), (after, _) in pairwise([*spans, (len(text) + 1, 0)])]
