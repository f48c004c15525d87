"""Which test items stand in a training text: worked numbers, and what equality of words means."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.scoring.in_context import contamination as module
from multitune.scoring.in_context.contamination import Search, contamination, item_of, matches, ngram_length
from multitune.scoring.in_context.ngrams import cleaned, ngram_hashes, word_hashes
from multitune.scoring.in_context.overlap_filter import common_ngrams, ngrams_of, without_overlap

WORDS = [f"w{i}" for i in range(60)]
ITEM = "The quick brown fox, it jumps over a lazy dog; then it sleeps"  # 13 words


def dirty(items: list[str], *documents: str, fewest: int = 8) -> list[int]:
    benchmark = {"task": [item_of(str(i), {"text": text}) for i, text in enumerate(items)]}
    found = matches(benchmark, [(f"doc {i}", text) for i, text in enumerate(documents)], fewest=fewest)
    return sorted(found["task"])


@pytest.mark.parametrize(
    ("lengths", "N"), [([5] * 9, 8), ([40] * 9, 13), ([10] * 6 + [30] * 90, 10), ([8], 8), ([13], 13)]
)
def test_how_many_words_count(lengths, N):
    assert ngram_length(lengths) == N
    assert ngram_length([5] * 9, fewest=3) == 5


def test_words_are_told_apart_by_neither_case_nor_punctuation():
    assert cleaned("Don\u2019t -- STOP\u2026\tn\u00f6w\u00a0(ever)!").split() == [
        b"dont",
        b"stop",
        "n\u00f6w".encode(),
        b"ever",
    ]


def test_an_item_copied_in_other_dress_is_dirty_and_one_with_another_word_is_clean():
    longer = [ITEM] * 20 + ["a b " * 20] * 10  # N = 13
    copied = f"before {ITEM.upper().replace(' ', '  ').replace(',', '')}!! after"
    assert dirty(longer, copied) == list(range(20))
    assert dirty(longer, copied.replace("LAZY", "sleepy")) == []
    assert dirty(longer, "nothing of it") == []


def test_a_short_item_is_dirty_when_it_stands_there_whole():
    items = ["one two three", *(" ".join(WORDS[i : i + 20]) for i in range(30))]
    assert dirty(items, "zero, One two THREE four") == [0]
    assert dirty(items, "one two", "three") == []  # not across two documents
    assert dirty([""], "anything") == []


@given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 3))
def test_any_stretch_of_enough_words_is_found_wherever_it_stands(start, length, seed):
    item = [f"{word}{seed}" for word in WORDS]
    stretch = item[start : start + length]
    text = " ".join(["x"] * (7 * seed) + stretch + ["y"] * 3)
    assert dirty([" ".join(item)], text) == ([0] if len(stretch) >= 13 else [])


@pytest.mark.parametrize("block", [16, 64, 1 << 20])
def test_a_text_of_any_length_is_read_in_blocks(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = Random(0)
    noise = [" ".join(rng.choice(WORDS) for _ in range(200)) for _ in range(4)]
    copied = ITEM.replace(" ", "\n")
    assert dirty([ITEM], f"{noise[0]} {copied} {noise[1]}", noise[2], noise[3]) == [0]
    parts = copied.split("\n")
    halves = [("file", noise[0] + " " + " ".join(parts[:5])), ("file", " ".join(parts[5:]) + " " + noise[1])]
    benchmark = {"task": [item_of("0", {"text": ITEM})]}
    assert list(matches(benchmark, halves)["task"]) == [0]  # texts of one place go on
    assert not matches(benchmark, [("one", halves[0][1]), ("two", halves[1][1])])["task"]


def test_which_field_was_found_and_where():
    item = item_of("7", {"passage": " ".join(WORDS[:20]), "label": 3, "options": ["yes it is", "no it is not"]})
    assert len(item.words) == 27
    documents = [("a.txt", " ".join(WORDS[40:])), ("b.txt", "so " + " ".join(WORDS[2:16]))]
    (match,) = matches({"qa": [item]}, documents)["qa"].values()
    assert (match.fields, match.where, match.words) == ({"passage"}, "b.txt", " ".join(WORDS[2:15]))
    documents.append(("c.txt", " ".join([*WORDS[12:20], "yes it is no it is not"])))
    (match,) = matches({"qa": [item]}, documents)["qa"].values()
    assert match.fields == {"passage", "options"} and match.where == "b.txt"


def test_equal_hashes_are_not_trusted(monkeypatch):
    monkeypatch.setattr(
        module, "word_hashes", lambda text: (np.zeros(len(text.split()), np.uint64), *word_hashes(text)[1:])
    )
    assert dirty([ITEM], " ".join(WORDS)) == []


@given(st.lists(st.sampled_from(["a", "b", "ab", "ba", "n\u00f6"]), max_size=30), st.integers(1, 5))
def test_hashes_are_those_of_the_words_alone(words, n):
    text = " ".join(words).encode()
    hash_W, start_W, end_W = word_hashes(b"  " + text + b" ")
    assert [text[s - 2 : e - 2].decode() for s, e in zip(start_W, end_W, strict=True)] == words
    by_word = dict(zip(words, hash_W.tolist(), strict=True))
    assert hash_W.tolist() == [by_word[word] for word in words] and len(set(by_word.values())) == len(by_word)
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    hashes = ngram_hashes(hash_W, n).tolist()
    by_gram = dict(zip(grams, hashes, strict=True))
    assert hashes == [by_gram[gram] for gram in grams] and len(set(by_gram.values())) == len(by_gram)


def test_planted_items_are_all_found_and_no_others():
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}" for a in "bcdf" for b in "aeiou" for c in "klmnprst"])
    items = [" ".join(rng.choice(words, rng.integers(12, 30))) for _ in range(400)]
    corpus = [" ".join(rng.choice(words, 300)) for _ in range(200)]
    for i in range(0, 400, 10):  # three of ten
        for j in range(3):
            corpus[(i + j) % 200] += f". {items[i + j].capitalize()}! " + " ".join(rng.choice(words, 30))
    assert dirty(items, *corpus) == [i for i in range(400) if i % 10 < 3]


def test_scores_are_split_and_a_worse_clean_one_is_flagged():
    items = [item_of(str(i), {"text": f"{i} " + ITEM if i < 4 else " ".join(WORDS[i : i + 20])}) for i in range(10)]
    found = matches({"t": items}, [("train", ITEM)], fewest=8)["t"]
    scores = {str(i): float(i < 6) for i in range(10)}
    told = contamination("t", "test", items, found, scores)
    assert (told.n, told.ngram, list(told.dirty)) == (10, 13, ["0", "1", "2", "3"])
    assert told.scores == {"all": 0.6, "clean": pytest.approx(1 / 3), "dirty": 1.0}
    assert told.relative == pytest.approx((1 / 3 - 0.6) / 0.6) and told.flagged
    assert not contamination("t", "test", items, found, scores, threshold=0.3).flagged
    unscored = contamination("t", "test", items, {}, {})
    assert unscored.scores == {"all": None, "clean": None, "dirty": None} and not unscored.flagged


def letters(count: int, seed: int) -> str:
    rng = Random(seed)
    text = ""
    while len(text) < count:
        text += "".join(rng.choice("abcdefghij") for _ in range(5)) + " "
    return text[:count]


def test_a_hit_is_cut_out_with_its_window():
    ngrams = ngrams_of([ITEM])
    document = letters(500, 0) + f" {ITEM} " + letters(500, 1)
    pieces = without_overlap(document, ngrams)
    assert 1 <= len(pieces) <= 2
    assert all(len(piece) >= 200 and "fox" not in piece for piece in pieces)
    assert without_overlap(letters(300, 0) + ITEM, ngrams) == []  # what is left of the window is too short
    assert without_overlap(document, set()) == [document]


def test_a_document_in_many_pieces_is_dropped_whole():
    ngrams = ngrams_of([ITEM])
    one = letters(700, 0) + f" {ITEM} "
    assert len(without_overlap(one * 9 + letters(700, 1), ngrams)) == 10
    assert without_overlap(one * 11 + letters(700, 1), ngrams) == []


def test_what_many_documents_have_is_no_hit():
    ngrams = ngrams_of([ITEM])
    assert common_ngrams([ITEM] * 11, ngrams) == ngrams
    assert common_ngrams([ITEM] * 10 + ["other"], ngrams) == set()


def test_thirteen_words_are_found_and_twelve_are_not_in_every_document_apart():
    words = [f"w{i}" for i in range(40)]
    items = {"b": [item_of("1", {"text": " ".join(words)})]}
    search = Search(items)
    twelve, thirteen = " ".join(["x", *words[5:17], "y"]), " ".join(["x", *words[5:18], "y"])
    assert search.find([("d", twelve)]) == {"b": {}}
    assert list(search.find([("d", thirteen)])["b"]) == [0]
    assert search.find([("e", twelve)]) == {"b": {}}  # what was found before is forgotten
    assert search.find([("e", thirteen)])["b"][0].where == "e"


def test_the_search_is_brute_force_on_random_texts():
    draw = Random(0)
    texts = [" ".join(draw.choices("abcd", k=draw.randint(13, 30))) for _ in range(200)]
    items = {"b": [item_of(str(i), {"text": text}) for i, text in enumerate(texts[:100])]}
    documents = [(str(i), text) for i, text in enumerate(texts[100:])]

    def grams(text, n=13):
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    seen = set().union(*(grams(text) for _, text in documents)) | grams(texts[3])
    expected = {i for i, text in enumerate(texts[:100]) if grams(text) & seen}
    assert set(matches(items, [*documents, ("copy", texts[3])])["b"]) == expected and 3 in expected
