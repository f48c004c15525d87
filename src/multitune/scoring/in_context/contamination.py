"""Which test items stand in a training text: n-gram overlap after Brown et al. 2020 (arXiv:2005.14165, appendix C).

    N      the 5th percentile of a benchmark's lengths in words, at least 8 and at most 13
    dirty  an item that shares N words in a row with the text, or is shorter than N and stands in it whole

The n-grams of the items are hashed (16 bytes each); the text is read once, a million letters at a time, and hits are
confirmed word by word. Memory does not grow with the text.

Shape legend: ``G`` n-grams of items, in the order of their hashes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multitune.scoring.in_context.ngrams import BREAK, cleaned, ngram_hashes, word_hashes

FEWEST, MOST = 8, 13
"""The smallest and the largest N."""

BLOCK = 1 << 20
"""Letters that are hashed at once."""

LARGEST_FILTER = 26
"""At most 2^26 bytes tell for most n-grams of the text, in one look, that no item has them."""


@dataclass(frozen=True)
class Item:
    """A test item as words.

    Attributes:
        id: of the example.
        words: in lower case, without punctuation.
        ends: name of every field of the example, with the place in ``words`` where it ends.
    """

    id: str
    words: tuple[bytes, ...]
    ends: tuple[tuple[str, int], ...]

    def fields(self, start: int, n: int) -> set[str]:
        """Return the fields that n words from a place on lie in."""
        before, found = 0, set()
        for name, end in self.ends:
            if start < end and before < start + n:
                found.add(name)
            before = end
        return found


@dataclass
class Match:
    """What of an item was found in the text.

    Attributes:
        fields: of the example, in which words were found.
        where: the document in which it was found first.
        words: the n-gram that was found first.
    """

    fields: set[str]
    where: str
    words: str


def item_of(id: str, fields: Mapping[str, Any]) -> Item:
    """Return an example as words: its texts and lists of texts, one after the other; numbers are left out."""
    words: list[bytes] = []
    ends = []
    for name, value in fields.items():
        texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        new = [word for text in texts if isinstance(text, str) for word in cleaned(text).split()]
        words += new
        ends += [(name, len(words))] if new else []
    return Item(id, tuple(words), tuple(ends))


def ngram_length(lengths: Sequence[int], fewest: int = FEWEST) -> int:
    """Return N of a benchmark: the 5th percentile of its items' lengths in words, from ``fewest`` to 13."""
    return int(np.clip(np.percentile(lengths, 5), fewest, MOST)) if len(lengths) else fewest


def matches(
    benchmarks: Mapping[str, Sequence[Item]], documents: Iterable[tuple[str, str]], *, fewest: int = FEWEST
) -> dict[str, dict[int, Match]]:
    """Return for every benchmark its dirty items, by their place, and what of them was found.

    Args:
        benchmarks: items by the benchmark's name.
        documents: (where, text) one by one; texts of one ``where`` that follow one another go on.
        fewest: the smallest N; 8 in the paper, smaller for synthetic tasks of few words.
    """
    return Search(benchmarks, fewest=fewest).find(documents)


class Search:
    """The n-grams of benchmarks, made once, to be looked for in several texts apart: one training task after another.

    Args:
        benchmarks, fewest: as for ``matches``.
    """

    def __init__(self, benchmarks: Mapping[str, Sequence[Item]], *, fewest: int = FEWEST) -> None:
        self._index = _Index()
        for name, items in benchmarks.items():
            N = ngram_length([len(item.words) for item in items], fewest)
            for place, item in enumerate(items):
                self._index.add(name, place, item, min(N, len(item.words)))
        self._tables = [_Table(n, self._index.grams(n), self._index) for n in sorted(self._index.wanted)]

    def find(self, documents: Iterable[tuple[str, str]]) -> dict[str, dict[int, Match]]:
        """Return what ``matches`` returns, of these documents alone."""
        found: dict[str, dict[int, Match]] = {name: {} for name in self._index.found}
        self._index.found = found
        for table in self._tables:
            table.done_G[:] = False
        longest = max((table.n for table in self._tables), default=1)
        for text, starts, wheres in _blocks(documents, longest - 1):
            hash_W, start_W, end_W = word_hashes(text)
            for table in self._tables:
                for word in table.hits(hash_W):
                    words = text[start_W[word] : end_W[word + table.n - 1]].split()
                    table.take(hash_W[word : word + table.n], words, wheres[bisect_right(starts, start_W[word]) - 1])
        return found


@dataclass
class _Index:
    """The items of all benchmarks, the lengths of their n-grams, and what has been found."""

    items: list[tuple[str, int, Item]] = field(default_factory=list)
    wanted: dict[int, list[int]] = field(default_factory=dict)
    found: dict[str, dict[int, Match]] = field(default_factory=dict)

    def add(self, name: str, place: int, item: Item, n: int) -> None:
        self.found.setdefault(name, {})
        if n:
            self.wanted.setdefault(n, []).append(len(self.items))
            self.items.append((name, place, item))

    def grams(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return hash uint64 [G], item and place int32 [G] of all n-grams of the items of this n, sorted by hash."""
        hashes, items, places = [], [], []
        for number in self.wanted[n]:
            hash_W, _, _ = word_hashes(b" ".join(self.items[number][2].words))
            gram = ngram_hashes(hash_W, n)
            hashes.append(gram)
            items.append(np.full(len(gram), number, dtype=np.int32))
            places.append(np.arange(len(gram), dtype=np.int32))
        hash_G = np.concatenate(hashes)
        order = np.argsort(hash_G, kind="stable")
        return hash_G[order], np.concatenate(items)[order], np.concatenate(places)[order]


class _Table:
    """All n-grams of one length, and a filter that most of the text does not pass."""

    def __init__(self, n: int, grams: tuple[np.ndarray, np.ndarray, np.ndarray], index: _Index) -> None:
        self.n = n
        self.hash_G, self.item_G, self.place_G = grams
        self.done_G = np.zeros(len(self.hash_G), dtype=bool)
        self.index = index
        bits = min(LARGEST_FILTER, max(10, (16 * len(self.hash_G)).bit_length()))
        self.shift = np.uint64(64 - bits)
        self.passes = np.zeros(1 << bits, dtype=bool)
        self.passes[self.hash_G >> self.shift] = True

    def hits(self, hash_W: np.ndarray) -> list[int]:
        """Return the words of a text at which n-grams begin that are looked for still, each n-gram once."""
        gram_G = ngram_hashes(hash_W, self.n)
        words = np.flatnonzero(self.passes[gram_G >> self.shift])
        place = np.searchsorted(self.hash_G, gram_G[words]).clip(max=len(self.hash_G) - 1)
        wanted = (self.hash_G[place] == gram_G[words]) & ~self.done_G[place]
        _, first = np.unique(place[wanted], return_index=True)
        return sorted(words[wanted][first].tolist())

    def take(self, hash_W: np.ndarray, found: list[bytes], where: str) -> None:
        """Note the items that have the n-gram which was found; a text of another wording with its hash is none."""
        (gram,) = ngram_hashes(hash_W, self.n)
        first, after = (int(np.searchsorted(self.hash_G, gram, side)) for side in ("left", "right"))
        for entry in range(first, after):
            name, place, item = self.index.items[self.item_G[entry]]
            start = int(self.place_G[entry])
            if item.words[start : start + self.n] != tuple(found):
                continue
            self.done_G[entry] = True
            fields = item.fields(start, self.n)
            known = self.index.found[name].get(place)
            if known is None:
                told = b" ".join(found).decode("utf-8", "replace")
                self.index.found[name][place] = Match(fields, where, told)
            else:
                known.fields |= fields


@dataclass(frozen=True)
class Contamination:
    """How much of a benchmark stands in a training text, and what that makes of its score.

    Attributes:
        task, split: the benchmark.
        n: items.
        ngram: N, in words.
        dirty: what was found, by the item's id.
        scores: mean score of all items, of the clean and of the dirty ones; None where nothing was scored, or where
            there are none.
        relative: (clean - all) / all; None without both, or where all is 0.
        flagged: whether the clean score is worse than that of all items by more than the threshold.
    """

    task: str
    split: str
    n: int
    ngram: int
    dirty: dict[str, Match]
    scores: dict[str, float | None]
    relative: float | None
    flagged: bool


def contamination(
    task: str,
    split: str,
    items: Sequence[Item],
    found: Mapping[int, Match],
    scores: Mapping[str, float],
    *,
    threshold: float = 0.02,
    fewest: int = FEWEST,
) -> Contamination:
    """Return the clean and dirty items of a benchmark with their mean scores.

    Args:
        items: all of them.
        found: what ``matches`` found of this benchmark.
        scores: every item's score, higher being better, by its id; {} where nothing was scored.
        threshold: flagged is a clean score that is lower than the whole one by more than this (0.02: Brown et al.).
        fewest: as given to ``matches``.
    """
    dirty = {items[place].id: match for place, match in sorted(found.items())}
    scored = [item.id for item in items if item.id in scores]

    def mean(ids: list[str]) -> float | None:
        return float(np.mean([scores[id] for id in ids])) if ids else None

    means = {
        "all": mean(scored),
        "clean": mean([id for id in scored if id not in dirty]),
        "dirty": mean([id for id in scored if id in dirty]),
    }
    whole, clean = means["all"], means["clean"]
    lost = 0.0 if whole is None or clean is None else whole - clean
    return Contamination(
        task=task,
        split=split,
        n=len(items),
        ngram=ngram_length([len(item.words) for item in items], fewest),
        dirty=dirty,
        scores=means,
        relative=-lost / whole if whole and clean is not None else None,
        flagged=lost > threshold,
    )


def _blocks(documents: Iterable[tuple[str, str]], overlap: int) -> Iterator[tuple[bytes, list[int], list[str]]]:
    """Yield cleaned texts of about BLOCK letters: bytes, where every document in them starts, and their names.

    Documents are parted by BREAK. A document that goes on in the next block begins there with its last words.

    Args:
        documents: (where, text); a text is cut between words only.
        overlap: how many words are said again.
    """
    parts: list[bytes] = []
    starts: list[int] = []
    wheres: list[str] = []
    size, last, tail = 0, None, b""
    for where, text in documents:
        for begin in range(0, max(1, len(text)), BLOCK):
            new = cleaned(_whole_words(text, begin))
            goes_on = where == last
            piece = tail + b" " + new if goes_on and not parts else (b" " if goes_on else b" " + BREAK + b" ") + new
            parts.append(piece)
            starts.append(size)
            wheres.append(where)
            size += len(piece)
            last = where
            if size >= BLOCK:
                whole = b"".join(parts)
                tail = b" ".join(whole.rsplit(maxsplit=overlap)[-overlap:]) if overlap else b""
                yield whole, starts, wheres
                parts, starts, wheres, size = [], [], [], 0
    if parts:
        yield b"".join(parts), starts, wheres


def _whole_words(text: str, begin: int) -> str:
    """Return about BLOCK letters of a text from a place on, which begins and ends between words."""
    return text[_after_word(text, begin) : _after_word(text, begin + BLOCK)]


def _after_word(text: str, place: int) -> int:
    """Return the first place from the given one on at which no word is cut; the ends of the text are such places."""
    while 0 < place < len(text) and not text[place - 1].isspace():
        place += 1
    return min(place, len(text))
