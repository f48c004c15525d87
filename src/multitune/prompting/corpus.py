"""The lines on which pre-training goes on: filled templates with label words (PCP), or raw texts (TAPT)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from multitune.errors import MultituneError
from multitune.prompting.encoding import PromptEncoder
from multitune.prompting.template import Row, filled, joined, texts_of

logger = logging.getLogger("multitune.prompting")

CorpusKind = Literal["pcp", "tapt"]


def build_corpus(
    kind: CorpusKind,
    rows: Sequence[Row],
    encoder: PromptEncoder,
    predictions: Sequence[float] = (),
    *,
    max_length: int | None = None,
) -> list[str]:
    """Return one line per row.

    Args:
        kind: ``pcp``: the template with the row's label word in place of the mask; of a soft prompt its plain words.
            ``tapt``: the row's texts joined by a space, without template or label.
        rows: fields by name.
        encoder: of the prompt.
        predictions: class (or value) of every row, predicted or known; not read for ``tapt``.
        max_length: tokens; of longer lines the texts are shortened, so that template and label word stay. None: no
            limit.

    Raises:
        MultituneError: no rows, a row without a field, predictions missing, or a tokenizer that reads the line in other
            tokens than the filled template.
    """
    if not rows:
        raise MultituneError("There are no texts for a corpus.", "corpus", "Give rows, labelled or not.")
    template, verbalizer = encoder.template, encoder.verbalizer
    if kind == "tapt":
        lines = [joined(texts_of(template, row, f"row {n}").values()) for n, row in enumerate(rows, start=1)]
    else:
        if len(predictions) != len(rows):
            raise MultituneError(
                f"There are {len(rows)} texts and {len(predictions)} labels for them.",
                "corpus",
                "Label every text, by a model or by hand.",
            )
        words = [verbalizer.word_of(prediction) for prediction in predictions]
        if max_length is not None and encoder.tokenizer.is_fast:
            rows = encoder.shortened(rows, max_length)
        _refuse_other_tokens(encoder, rows, words)
        lines = [
            filled(template, row, word, f"row {n}") for n, (row, word) in enumerate(zip(rows, words, strict=True), 1)
        ]
    kept = [line for line in lines if line]
    if not kept:
        raise MultituneError("All texts of the corpus are empty.", "corpus", "Check the names of the fields.")
    return kept


def _refuse_other_tokens(encoder: PromptEncoder, rows: Sequence[Row], words: Sequence[str]) -> None:
    """Check that what is learned from is what is asked with; some rare row may differ."""
    differing = encoder.mismatched(rows, words)
    if len(differing) > max(1, len(rows) // 100):
        raise MultituneError(
            f"{len(differing)} of {len(rows)} lines have other tokens than the filled template.",
            f"row {differing[0] + 1}",
            "Part the template's words by spaces, or take a tokenizer that does not join words.",
        )
    if differing:
        logger.warning(
            "%d lines have other tokens than their filled template, row %d first", len(differing), differing[0] + 1
        )


def histogram(predictions: Sequence[float], encoder: PromptEncoder) -> dict[str, int]:
    """Return how many rows have each label word, in the order of the classes; words that none has count 0."""
    counts = dict.fromkeys(encoder.verbalizer.words, 0)
    for prediction in predictions:
        counts[encoder.verbalizer.word_of(prediction)] += 1
    return counts
