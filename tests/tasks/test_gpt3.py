"""The generated tasks of the GPT-3 paper: answers that are right, scrambles that can be undone, items that differ."""

from __future__ import annotations

import re
from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.tasks.gpt3 import (
    ARITHMETIC,
    INSERTED,
    SCRAMBLES,
    anagram_1,
    anagram_2,
    cycle_letters,
    generate,
    random_insertion,
    reversed_word,
)
from multitune.tasks.prompting import prompted_examples, resolve
from multitune.tasks.sources import source_fingerprint
from multitune.tasks.task import Source, Task

WORDS = st.text("abcdefghij", min_size=6, max_size=15)
SEEDS = st.integers(0, 99).map(Random)
SIGNS = {"plus": "+", "minus": "-", "times": "*"}


def value(expression: str) -> int:
    """What an expression is worth, read from its text alone: parentheses first, then from left to right."""
    if found := re.fullmatch(r"the sum of the digits of the number (\d+)", expression):
        return sum(map(int, found[1]))
    for word, sign in SIGNS.items():
        expression = expression.replace(word, sign)
    while found := re.search(r"\((\d+ [-+*] \d+)\)", expression):
        expression = expression.replace(found[0], str(value(found[1])))
    a, sign, b = re.fullmatch(r"(-?\d+) ([-+*]) (-?\d+)", expression).groups()
    return {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


@pytest.mark.parametrize("task", ARITHMETIC)
def test_two_thousand_different_questions_with_right_answers(task):
    items = list(generate(task))
    assert len(items) == len({item["prompt"] for item in items}) == len({item["id"] for item in items}) == 2000
    for item in items:
        question = re.fullmatch(r"\n\nQ: What is (.+)\?\n\nA:", item["context"])[1]
        assert item["completion"] == f" {value(question)}"
        assert item["prompt"] == item["context"][2:]


def test_numbers_of_two_digits_begin_at_zero():
    numbers = [int(n) for item in generate("2D+") for n in re.findall(r"\d+", item["prompt"])]
    assert min(numbers) == 0 and max(numbers) == 99
    assert 0.07 < sum(n < 10 for n in numbers) / len(numbers) < 0.13
    assert any(item["completion"].startswith(" -") for item in generate("2D-", 50))


@pytest.mark.parametrize(("paren", "form"), [("first", r"\(\d . \d\) . \d"), ("last", r"\d . \(\d . \d\)")])
def test_the_parentheses_of_three_digits(paren, form):
    for item in generate("1DC", 200, paren=paren):
        question = item["prompt"][len("Q: What is ") :].split("?")[0]
        assert re.fullmatch(form, question) and "0" not in question
        assert item["completion"] == f" {value(question)}"


@given(WORDS, SEEDS)
def test_a_cycled_word_comes_back(word, rng):
    scrambled = cycle_letters(word, rng)
    assert word in [scrambled[k:] + scrambled[:k] for k in range(1, len(word))]


@given(WORDS, SEEDS)
def test_anagrams_keep_their_ends_and_letters(word, rng):
    for scramble, kept in ((anagram_1, 1), (anagram_2, 2)):
        scrambled = scramble(word, rng)
        if scrambled is not None:
            assert sorted(scrambled) == sorted(word)
            assert (scrambled[:kept], scrambled[-kept:]) == (word[:kept], word[-kept:])
    assert anagram_1(word, rng) != word


def test_anagrams_without_another_order():
    assert anagram_1("abbba", Random(0)) is None
    assert anagram_2("abccba", Random(0)) == "abccba"


@given(WORDS, SEEDS)
def test_inserted_signs_stand_at_odd_places(word, rng):
    scrambled = random_insertion(word, rng)
    assert scrambled[::2] == word and set(scrambled[1::2]) <= set(INSERTED)
    assert len(scrambled) == 2 * len(word) - 1
    assert reversed_word(reversed_word(word, rng), rng) == word


def word_file(folder, words: int = 400):
    rng = Random(0)
    lines = ["".join(rng.choice("abcdefgh") for _ in range(4 + i % 13)) for i in range(words)]
    (folder / "words.txt").write_text("\n".join(lines), encoding="utf-8")
    return lines


@pytest.mark.parametrize("task", SCRAMBLES)
def test_words_of_the_released_lengths_from_the_users_list(tmp_path, task):
    lines = word_file(tmp_path)
    items = list(generate(task, 300, words="words.txt", folder=tmp_path))
    assert len({item["prompt"] for item in items}) == 300
    for item in items:
        word = item["completion"][1:]
        assert word in lines and (5 if task == "A1" else 6) <= len(word) <= 15
        assert item["context"] == f"\n{item['prompt']}" and item["prompt"].endswith(" =")


def test_the_packages_own_words_are_few_and_say_so():
    assert len(list(generate("reversed", 30))) == 30
    with pytest.raises(MultituneError, match=r"fewer than 10,000 different questions of reversed") as refused:
        list(generate("reversed"))
    assert "longer list of words" in refused.value.mend


def test_train_and_test_share_no_question():
    train, test = ({item["prompt"] for item in generate("2D+", 500, split=split)} for split in ("train", "test"))
    assert len(train) == len(test) == 500 and not train & test
    first = list(generate("2D+", 9, seed=4))
    assert first == list(islice(generate("2D+", 20, seed=4), 9)) and first != list(generate("2D+", 9, seed=5))
    assert all(one["id"] != other["id"] for one, other in pairwise(first))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"task": "2D/"}, "There is no '2D/' here. Did you mean '2D"),
        ({"task": "1DC", "paren": "middle"}, "There is no 'middle' here"),
        ({"task": "A1", "words": "none.txt"}, "list of words cannot be read"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path, arguments, what):
    with pytest.raises(MultituneError, match=re.escape(what)):
        list(generate(**arguments, folder=tmp_path))


def test_a_list_without_words_of_the_length_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("cat dog")
    with pytest.raises(MultituneError, match="no word of 6 to 15 letters"):
        list(generate("cycle", words="short.txt", folder=tmp_path))


def test_a_task_names_them_as_a_source(tmp_path):
    word_file(tmp_path)
    source = {"generator": "gpt3:A1", "arguments": {"rows": 5, "words": "words.txt"}}
    task = resolve(Task(name="anagrams", test=source), tmp_path)
    rows = list(prompted_examples(task, "test", tmp_path))
    assert (task.kind, task.layout, len(rows)) == ("generate", "prompt_completion", 5)
    before = source_fingerprint(Source(**source), tmp_path)
    assert before == source_fingerprint(Source(**source), tmp_path)
    (tmp_path / "words.txt").write_text("another")
    assert before != source_fingerprint(Source(**source), tmp_path)
