from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.tasks.synthetic import (
    END,
    EPISODES,
    HELD_OUT_SKILLS,
    SKILLS,
    chat_document,
    document,
    draw,
    few_shot_document,
    generate,
    is_test_input,
    words,
    zero_shot_document,
)

ALL_SKILLS = SKILLS | HELD_OUT_SKILLS


@pytest.mark.parametrize("name", ALL_SKILLS)
def test_a_skill_gives_text_with_an_answer_among_its_choices(name: str) -> None:
    for seed in range(50):
        row = ALL_SKILLS[name](Random(seed))
        assert set(row) - {"choices"} == {"instruction", "input", "target"}
        assert row["input"] and row["target"]
        assert END not in row["input"] and END not in row["target"]
        if "choices" in row:
            assert row["target"] in row["choices"]
            assert len(set(row["choices"])) == len(row["choices"]) > 1


@pytest.mark.parametrize("name", ALL_SKILLS)
def test_train_and_test_never_share_an_input(name: str) -> None:
    train = {row["input"] for row in generate(name, 300, seed=0, split="train")}
    test = {row["input"] for row in generate(name, 50, seed=5, split="test")}
    assert len(train) == 300 and len(test) == 50
    assert not train & test


@pytest.mark.parametrize("name", ALL_SKILLS)
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(name: str) -> None:
    first = list(generate(name, 20, seed=3))
    assert first == list(generate(name, 20, seed=3))
    assert first[:7] == list(generate(name, 7, seed=3))
    assert first != list(generate(name, 20, seed=4))
    assert len({row["id"] for row in first}) == 20


def test_rows_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "from multitune.tasks.synthetic import generate; print(list(generate('topic', 30, 1)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_no_skill_is_both_trained_and_held_out() -> None:
    assert not SKILLS.keys() & HELD_OUT_SKILLS.keys()


def test_excluded_inputs_do_not_occur() -> None:
    taken = [row["input"] for row in generate("parity", 100, seed=0)]
    assert not {row["input"] for row in generate("parity", 100, seed=0, exclude=taken)} & set(taken)


def test_unknown_skill_names_the_nearest() -> None:
    with pytest.raises(MultituneError, match="Did you mean 'copy_words'") as caught:
        list(generate("copy_word"))
    assert caught.value.where == "synthetic:copy_word"


def test_unknown_split_is_refused() -> None:
    with pytest.raises(MultituneError, match="no split 'dev'"):
        list(generate("add", split="dev"))  # type: ignore[arg-type]


def test_more_rows_than_inputs_are_refused() -> None:
    with pytest.raises(MultituneError, match="fewer than 30000 different inputs"):
        list(generate("parity", 30_000))


# Each answer computed in another way than the skill does it.
def test_worked_answers() -> None:
    rng = Random(0)
    for _ in range(100):
        row = SKILLS["add_with_steps"](rng)
        a, b = map(int, row["input"].split(" + "))
        *steps, answer = row["target"].split("; ")
        assert answer == f"answer {a + b}"
        for step in steps:
            left, right = step.split(" = ")
            assert sum(map(int, left.split(" + "))) == int(right)
        row = SKILLS["count_letter"](rng)
        letter, letters = row["input"].removeprefix("how many ").split(" in ")
        assert int(row["target"]) == letters.replace(" ", "").count(letter)
        row = SKILLS["spell_words"](rng)
        assert row["target"].replace(" ", "").split(",") == row["input"].split()
        row = SKILLS["look_up"](rng)
        pairs, key = row["input"].split("; ")
        assert f"{key} = {row['target']}" in pairs.split(", ")
        row = HELD_OUT_SKILLS["interleave"](rng)
        left, right = row["input"].split(" / ")
        assert row["target"].split()[0::2] == left.split()
        assert row["target"].split()[1::2] == right.split()
        row = HELD_OUT_SKILLS["letter_positions"](rng)
        assert [chr(int(n) + 96) for n in row["target"].split()] == row["input"].split()


def test_calendar() -> None:
    for row in generate("days_later", 200):
        for day, later in zip(row["input"].split(), row["target"].split(), strict=True):
            assert (words.DAYS.index(later) - words.DAYS.index(day)) % 7 == 3


def test_plurals() -> None:
    assert [words.plural(w) for w in ("cat", "bus", "bench", "ferry", "boy", "mouse")] == [
        "cats",
        "buses",
        "benches",
        "ferries",
        "boys",
        "mice",
    ]


@pytest.mark.parametrize("name", EPISODES)
def test_an_episode_keeps_one_rule(name: str) -> None:
    for seed in range(30):
        rows = EPISODES[name](Random(seed), 12)
        assert len(rows) == 12
        if name in ("recall", "offset"):
            seen: dict[str, str] = {}
            assert all(seen.setdefault(row["input"], row["target"]) == row["target"] for row in rows)


def test_a_cipher_episode_asks_only_for_words_that_were_shown() -> None:
    for seed in range(30):
        rows = EPISODES["cipher"](Random(seed), 10)
        shown: dict[str, str] = {}
        for row in rows:
            pairs = list(zip(row["input"].split(), row["target"].split(), strict=True))
            assert len(pairs) == 1 or all(code in shown for code, _ in pairs)
            for code, plain in pairs:
                assert shown.setdefault(code, plain) == plain


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), shots=st.integers(1, 9), name=st.sampled_from(sorted(SKILLS)))
def test_a_few_shot_document_has_its_shots_and_ends_once(seed: int, shots: int, name: str) -> None:
    pieces = few_shot_document(Random(seed), SKILLS[name], shots)
    assert sum(is_answer for _, is_answer in pieces) == shots
    text = "".join(piece for piece, _ in pieces)
    assert text.endswith(END) and text.count(END) == 1


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(SKILLS)))
def test_chat_and_zero_shot_documents_end_every_answer(seed: int, name: str) -> None:
    for make in (chat_document, zero_shot_document):
        pieces = make(Random(seed), SKILLS[name])
        assert pieces[-1][1]
        assert all(text.endswith(END) == is_answer for text, is_answer in pieces)


def test_pretraining_documents_never_contain_a_test_input() -> None:
    rng = Random(0)
    assert not any(is_test_input(str(draw(SKILLS["word_problem"], rng, "train")["input"])) for _ in range(200))
    assert all(is_test_input(str(draw(SKILLS["word_problem"], rng, "test")["input"])) for _ in range(20))


def test_documents_depend_on_the_generator_alone() -> None:
    assert [document(Random(i)) for i in range(40)] == [document(Random(i)) for i in range(40)]


def test_importing_the_skills_loads_nothing_heavy() -> None:
    code = "import sys, multitune.tasks.synthetic; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
