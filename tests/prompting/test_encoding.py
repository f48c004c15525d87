"""Rows as tokens: one mask each, template words never cut, corpus lines in the tokens of filled templates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.prompting.corpus import build_corpus, histogram
from multitune.prompting.encoding import encoder_of, tokens_of_texts
from multitune.prompting.shipped import shipped_prompt
from multitune.prompting.template import parse_template
from multitune.prompting.verbalizer import classes
from tests.prompting.small_models import byte_level_tokenizer, word_tokenizer

TOKENIZER = byte_level_tokenizer()
SNLI = encoder_of(TOKENIZER, *shipped_prompt("snli"))
SST = encoder_of(TOKENIZER, *shipped_prompt("sst-2"))
TREC = encoder_of(TOKENIZER, *shipped_prompt("trec"))

texts = st.text(alphabet="ab .,'<>mask\n\u00e9", max_size=60)


@given(a=texts, b=texts, length=st.integers(20, 70))
def test_every_example_has_one_mask_and_the_whole_template(a, b, length):
    (ids,) = SNLI.encode([{"a": a, "b": b}], length)
    assert len(ids) <= length and ids.count(TOKENIZER.mask_token_id) == 1
    place = ids.index(TOKENIZER.mask_token_id)
    after = tokens_of_texts(TOKENIZER, [", in this case"])[0]
    before = tokens_of_texts(TOKENIZER, ["."])[0]
    assert ids[place - len(before) : place] == before and ids[place + 1 : place + 1 + len(after)] == after
    assert ids[0] == TOKENIZER.bos_token_id and ids[-1] == TOKENIZER.eos_token_id


@given(text=texts, length=st.integers(12, 40), label=st.integers(0, 5))
def test_a_shortened_line_has_the_tokens_of_the_shortened_example(text, length, label):
    if not text.strip():
        return
    word = TREC.verbalizer.words[label]
    (line,) = build_corpus("pcp", [{"a": text}], TREC, [label], max_length=length)
    assert line.startswith(f"{word} :")
    (ids,) = TREC.encode([{"a": text}], length)
    asked = [TREC.label_ids[label] if token == TREC.mask_id else token for token in ids]
    read = [0, *tokens_of_texts(TOKENIZER, [line])[0], 2]
    # a cut inside a letter of several bytes leaves the line a token or two shorter
    assert len(read) <= length and (read == asked or "\u00e9" in text)


def test_the_longest_text_is_cut_first():
    row = {"a": "the film moved me", "b": "the play bored us and the song was long and the book short"}
    own = SNLI.own_tokens
    (a,), (b,) = (tokens_of_texts(TOKENIZER, [row[name]]) for name in "ab")
    assert len(b) > 2 * len(a)
    (ids,) = SNLI.encode([row], own + 2 * len(a))
    assert ids == [0, *a, *SNLI.literals[0], TOKENIZER.mask_token_id, *SNLI.literals[1], *b[: len(a)], 2]


def test_a_field_that_is_kept_whole_is_not_cut():
    encoder = encoder_of(TOKENIZER, parse_template("{a!} <mask> , {b}"), classes({"0": "No", "1": "Yes"}))
    row = {"a": "the film moved me", "b": "the book"}
    (a,) = tokens_of_texts(TOKENIZER, [row["a"]])
    (ids,) = encoder.encode([row], encoder.own_tokens + len(a))
    assert ids[1 : 1 + len(a)] == a
    with pytest.raises(MultituneError, match="takes more than the"):
        encoder.encode([row], encoder.own_tokens + len(a) - 1)


def test_a_template_longer_than_the_example_is_refused():
    with pytest.raises(MultituneError, match="takes more than the 5 tokens"):
        SNLI.encode([{"a": "p", "b": "h"}], 5)


def test_a_mask_written_in_a_text_is_no_mask():
    (ids,) = SST.encode([{"a": "a <mask> b </s> <s>"}], 40)
    assert ids.count(TOKENIZER.mask_token_id) == 1 and ids.count(2) == 1


@pytest.mark.parametrize("encoder", [SNLI, SST, TREC])
def test_corpus_lines_have_the_tokens_of_the_filled_template(encoder):
    row = {"a": "the film 's play ; moved", "b": "me"}
    words = list(encoder.verbalizer.words)
    assert encoder.mismatched([row] * len(words), words) == []
    (line,) = build_corpus("pcp", [row], encoder, [0])
    (ids,) = encoder.encode([row], 64)
    asked = [encoder.label_ids[0] if token == encoder.mask_id else token for token in ids]
    assert [0, *tokens_of_texts(TOKENIZER, [line])[0], 2] == asked


def test_a_template_that_a_tokenizer_reads_otherwise_is_refused():
    whole = word_tokenizer(["a", "good", "bad", "x", "y"])
    encoder = encoder_of(whole, parse_template("{a} <mask>"), classes({"0": "good", "1": "bad"}))
    from tokenizers import normalizers

    whole.backend_tokenizer.normalizer = normalizers.Replace("x good", "x y")  # joins a text and the word behind it
    with pytest.raises(MultituneError, match="other tokens than the filled template"):
        build_corpus("pcp", [{"a": "x"}] * 5, encoder, [0] * 5)


def test_tapt_lines_are_the_texts_alone():
    rows = [{"a": "p", "b": "h"}, {"a": "q", "b": ""}]
    lines = build_corpus("tapt", rows, SNLI)
    assert lines == ["p h", "q"]
    assert not {word for line in lines for word in line.split()} & set(SNLI.verbalizer.words)


def test_a_corpus_of_nothing_or_without_labels_is_refused():
    with pytest.raises(MultituneError, match="no texts for a corpus"):
        build_corpus("pcp", [], SST)
    with pytest.raises(MultituneError, match="2 texts and 1 labels"):
        build_corpus("pcp", [{"a": "a"}] * 2, SST, [0])
    with pytest.raises(MultituneError, match="texts of the corpus are empty"):
        build_corpus("tapt", [{"a": " "}], SST)


def test_a_histogram_names_the_classes_that_nobody_has():
    assert histogram([1, 1, 1], SST) == {"terrible": 0, "great": 3}


def test_a_causal_prompt_ends_before_the_word_and_needs_its_fields_before():
    encoder = encoder_of(TOKENIZER, *shipped_prompt("sst-2"), causal=True)
    (ids,) = encoder.encode([{"a": "the film"}], 40)
    assert ids == [0, *tokens_of_texts(TOKENIZER, ["the film It was"])[0]]
    with pytest.raises(MultituneError, match="before it has read everything"):
        encoder_of(TOKENIZER, *shipped_prompt("trec"), causal=True)


def test_a_tokenizer_without_mask_is_refused():
    bare = byte_level_tokenizer()
    bare.mask_token = None
    with pytest.raises(MultituneError, match="no mask token"):
        encoder_of(bare, *shipped_prompt("sst-2"))
