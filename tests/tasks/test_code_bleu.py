"""CodeBLEU against the worked numbers of the package codebleu 0.7.0."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from multitune.tasks.code_bleu import PARTS, codebleu_of, codebleu_parts
from multitune.tasks.metrics import metric

ADD = "def add ( a , b ) :\n return a + b"
SUM = "def sum ( first , second ) :\n return second + first"
KILL = "os.kill(os.getpid(), signal.SIGUSR1)"


def test_the_cards_worked_example():
    parts = codebleu_parts([ADD], [SUM])
    assert [round(parts[name], 4) for name in PARTS] == [0.1042, 0.1109, 1.0, 1.0]
    assert codebleu_of([ADD], [SUM]) == pytest.approx(0.5537842627792564, abs=1e-15)


def test_an_identical_one_liner_of_two_words_is_not_perfect():
    """Two words hold no three: the two missing n-grams count 0.1 / 1 each."""
    assert codebleu_of([KILL], [KILL]) == pytest.approx(0.6419286129883562, abs=1e-15)
    parts = codebleu_parts([KILL], [KILL])
    assert parts["bleu"] == pytest.approx(0.1**0.5)
    assert parts["weighted_bleu"] == pytest.approx((0.4 * 0.01) ** 0.25)  # two words of weight 0.2 among at least 1
    assert parts["data_flow"] == 1.0


def test_identical_lines_with_a_flow_are_perfect():
    assert codebleu_of(["x = 1\ny = x + 2"], ["x = 1\ny = x + 2"]) == 1.0


def test_keywords_weigh_five_times_as_much():
    lost_name = codebleu_parts(["for a in rows :"], ["for b in rows :"])["weighted_bleu"]
    lost_keyword = codebleu_parts(["of b in rows :"], ["for b in rows :"])["weighted_bleu"]
    # for, in: 1 each; b, rows and the colon: 0.2 each
    assert (lost_name / lost_keyword) ** 4 == pytest.approx((2.4 / 1.6) * (2 / 3) * (1 / 2) * (0.1 / 1))


def test_sums_are_made_over_the_corpus_before_they_are_divided():
    pairs = [ADD, KILL], [SUM, "os.getpid()"]
    each = [codebleu_parts([p], [r])["bleu"] for p, r in zip(*pairs, strict=True)]
    assert codebleu_parts(*pairs)["bleu"] != pytest.approx(np.mean(each))
    near = "def add ( a , b ) :\n return a - b"
    assert codebleu_parts([near, near], [ADD, ADD]) == pytest.approx(codebleu_parts([near], [ADD]))


@pytest.mark.parametrize("broken", ["", "def (", "x = = 1", "-" * 100_000 + "1", "a\0b", "x" + ".y" * 5000])
def test_what_is_no_python_has_no_tree_and_no_flow(broken):
    assert codebleu_parts([broken], ["x = 1\ny = x + 2"])["syntax"] == 0.0
    assert codebleu_parts([broken], ["x = 1\ny = x + 2"])["data_flow"] == 0.0
    assert 0.0 <= codebleu_of([broken], [broken]) <= 1.0


def test_a_reference_that_is_no_python_counts_as_one_tree():
    assert codebleu_parts(["def ("], ["def ("])["syntax"] == 1.0
    assert codebleu_parts(["x"], ["def ("])["syntax"] == 0.0


def test_of_several_references_the_nearest_counts():
    codebleu = metric("codebleu")
    assert codebleu.score([ADD], [("import os", SUM)]) == codebleu.score([ADD], [SUM])


def test_solutions_of_humaneval_agree_with_themselves_and_no_other():
    file = Path(__file__).parents[3] / "shared/data/humaneval/test.jsonl"
    if not file.is_file():
        pytest.skip("../shared/data/humaneval is not beside the repository")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:40]]
    programs = [row["prompt"] + row["canonical_solution"] for row in rows]
    assert codebleu_of(programs, programs) == 1.0
    assert codebleu_of(programs, programs[1:] + programs[:1]) < 0.4
