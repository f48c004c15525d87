"""Templates, label words, the prompts that are shipped, and few-shot splits."""

from __future__ import annotations

import pytest
from tokenizers import normalizers

from multitune.errors import MultituneError
from multitune.prompting.sampling import k_shot, split
from multitune.prompting.shipped import SHIPPED, shipped_prompt
from multitune.prompting.template import Field, Literal, Mask, filled, parse_template
from multitune.prompting.verbalizer import Verbalizer, classes, regression, token_ids, token_of
from tests.prompting.small_models import byte_level_tokenizer, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def test_a_template_is_its_parts():
    template = parse_template("{a} ? <mask> , {b!}")
    assert template.parts == (Field("a"), Literal("?"), Mask(), Literal(","), Field("b", shortenable=False))
    assert template.fields == ("a", "b")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{a} It was .", "has no mask"),
        ("{a} <mask> <mask>", "has 2 masks"),
        ("It was <mask>", "has no field"),
    ],
)
def test_a_template_without_one_mask_and_a_field_is_refused(text, told):
    with pytest.raises(MultituneError, match=told):
        parse_template(text)


@pytest.mark.parametrize(
    ("name", "soft", "row", "label", "line"),
    [
        ("sst-2", False, {"a": "a b"}, "1", "a b It was great ."),
        ("sst-2", True, {"a": "a b"}, "1", "a b It was great"),
        ("snli", False, {"a": "p", "b": "h"}, "neutral", "p . Maybe , in this case h"),
        ("snli", True, {"a": "p", "b": "h"}, "neutral", "p Maybe , h"),
        ("trec", False, {"a": "a b"}, "3", "Human : a b"),
        ("mpqa", False, {"a": "a b"}, "0", "a b is negative ."),
        ("rte", False, {"a": "p", "b": "h"}, "entailment", "p . Clearly , I think that h"),
        ("sst-2", False, {"a": ""}, "0", "It was terrible ."),
        ("sst-2", False, {"a": " a \n b "}, "0", "a b It was terrible ."),
    ],
)
def test_corpus_lines_are_those_of_the_card(name, soft, row, label, line):
    template, verbalizer = shipped_prompt(name, soft=soft)
    assert filled(template, row, verbalizer.mapping[label]) == line


def test_orders_that_are_easily_mistaken():
    assert shipped_prompt("mnli")[1].labels == ("contradiction", "entailment", "neutral")
    assert shipped_prompt("imdb")[1].mapping == {"0": "great", "1": "terrible"}
    assert shipped_prompt("sst-2")[1].mapping == {"0": "terrible", "1": "great"}


def test_every_data_set_of_the_card_has_a_prompt():
    assert len(SHIPPED) == 20
    for name in SHIPPED:
        template, verbalizer = shipped_prompt(name, ("first text", "second"))
        assert template.fields[0] == "first text" and len(verbalizer.words) >= 2


def test_an_unknown_prompt_and_a_pair_of_one_field_are_refused():
    with pytest.raises(MultituneError, match="Did you mean 'sst-2'"):
        shipped_prompt("sst2")
    with pytest.raises(MultituneError, match="pairs of texts"):
        shipped_prompt("mnli", ("text",))


def test_a_row_without_the_field_is_refused():
    with pytest.raises(MultituneError, match="field 'text' that the row lacks"):
        filled(parse_template("{text} is <mask>"), {"test": "a"}, "good")


def test_a_label_word_is_one_token_behind_a_space(tokenizer):
    for name in ("sst-2", "sst-5", "snli", "trec"):
        words = shipped_prompt(name)[1].words
        pieces = tokenizer.convert_ids_to_tokens(list(token_ids(tokenizer, classes(dict(enumerate(words))))))
        assert pieces == [f"Ġ{word}" for word in words]
    assert tokenizer.tokenize("great") != tokenizer.tokenize(" great")


def test_a_word_of_several_tokens_or_of_none_is_refused(tokenizer):
    with pytest.raises(MultituneError, match="'great good' is 2 tokens here"):
        token_of(tokenizer, "great good")
    with pytest.raises(MultituneError, match="tokens here"):
        token_of(tokenizer, "unheard-of")
    with pytest.raises(MultituneError, match="has no word"):
        classes({"0": "", "1": "good"})


def test_words_that_are_unknown_or_one_token_are_refused():
    words = word_tokenizer(["good", "bad"])
    with pytest.raises(MultituneError, match="does not know the label word 'fine'"):
        token_of(words, "fine")
    with pytest.raises(MultituneError, match="stands for two labels"):
        classes({"0": "good", "1": "good"})
    with pytest.raises(MultituneError, match="two labels at least"):
        classes({"0": "good"})
    words.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(MultituneError, match="are the same token"):
        token_ids(words, Verbalizer(("0", "1"), ("good", "Good")))


def test_labels_without_a_word_and_values_out_of_range_are_refused():
    with pytest.raises(MultituneError, match="No word stands for the label 2"):
        classes({"0": "bad", "1": "good"}).index(2, "row 7")
    stars = regression("No", "Yes", 0, 5)
    assert stars.value("2.5", "row 1") == 2.5
    for value in ("5.1", -1, "many", None, float("nan")):
        with pytest.raises(MultituneError, match="no number from 0 to 5"):
            stars.value(value, "row 1")
    assert [stars.word_of(value) for value in (0, 2.5, 2.6, 5)] == ["No", "No", "Yes", "Yes"]


def test_k_shot_draws_k_of_every_class_twice_and_the_same_for_a_seed():
    labels = ["a"] * 40 + ["b"] * 33 + ["c"] * 70
    train, development = k_shot(labels, 16, seed=13)
    assert not set(train) & set(development)
    for part in (train, development):
        assert [sum(labels[place] == label for place in part) for label in "abc"] == [16, 16, 16]
    assert (train, development) == k_shot(labels, 16, seed=13)
    assert train != k_shot(labels, 16, seed=21)[0]
    with pytest.raises(MultituneError, match="'b' has 33 rows, and 34 are needed"):
        k_shot(labels, 17, seed=13)


def test_a_split_holds_every_row_once():
    train, development = split(50, 0.1, seed=0)
    assert sorted(train + development) == list(range(50)) and len(development) == 5
    assert split(2, 0.1, seed=0)[1] != [] and split(1, 0.1, seed=0) == ([0], [])
