"""Takes test items out of training text: the filter of Brown et al. 2020 (arXiv:2005.14165, appendix C)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from multitune.scoring.in_context.ngrams import cleaned

N, WINDOW, SHORTEST_PIECE, MOST_PIECES, MOST_DOCUMENTS = 13, 200, 200, 10, 10
"""Words of a hit, letters cut on either side, letters of a piece that stays, pieces of a document that stays, and
documents in which a common n-gram may stand before it counts as boilerplate."""

Ngram = tuple[bytes, ...]


def ngrams_of(texts: Iterable[str], n: int = N) -> set[Ngram]:
    """Return every n words in a row of some texts."""
    return {gram for text in texts for gram in _grams(cleaned(text).split(), n)}


def common_ngrams(
    documents: Iterable[str], ngrams: Collection[Ngram], n: int = N, most: int = MOST_DOCUMENTS
) -> set[Ngram]:
    """Return those of some n-grams that stand in more than ``most`` documents: famous quotes, licences, menus."""
    counts: Counter[Ngram] = Counter()
    for document in documents:
        counts.update({gram for gram in _grams(cleaned(document).split(), n) if gram in ngrams})
    return {gram for gram, count in counts.items() if count > most}


def without_overlap(
    document: str,
    ngrams: Collection[Ngram],
    *,
    n: int = N,
    window: int = WINDOW,
    shortest: int = SHORTEST_PIECE,
    most_pieces: int = MOST_PIECES,
) -> list[str]:
    """Return what of a document stays when every hit is cut out with a window of letters on either side.

    Args:
        document: as it is.
        ngrams: of the test items, without the common ones.
        n: words of an n-gram.
        window: letters.
        shortest: pieces of fewer letters are dropped.
        most_pieces: a document that falls into more pieces is dropped whole.
    """
    spans = [
        (word, found.start(), found.end())
        for found in re.finditer(r"\S+", document)
        for word in cleaned(found[0]).split()
    ]
    words = [word for word, _, _ in spans]
    hits = [i for i, gram in enumerate(_grams(words, n)) if gram in ngrams]
    pieces, kept_to = [], 0
    for i in hits:
        begin, end = spans[i][1] - window, spans[i + n - 1][2] + window
        if begin > kept_to:
            pieces.append(document[kept_to:begin])
        kept_to = max(kept_to, end)
    pieces.append(document[kept_to:])
    if len(pieces) > most_pieces:
        return []
    return [piece for piece in pieces if len(piece) >= shortest]


def _grams(words: list[bytes], n: int) -> Iterator[Ngram]:
    return zip(*(words[i:] for i in range(n)), strict=False)
