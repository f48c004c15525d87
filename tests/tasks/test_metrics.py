"""Metrics against scikit-learn, SciPy and worked values; every one through the same examination."""

from __future__ import annotations

import sys
from decimal import Decimal

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from multitune.errors import MultituneError
from multitune.tasks.metrics import (
    DEFAULTS,
    METRICS,
    Metric,
    last_number,
    longest_common_subsequence,
    metric,
    metrics_of,
    squad_tokens,
)
from multitune.tasks.task import Task

SAMPLES = {
    "label": ([0, 1, 2, 1], [0, 2, 2, 1]),
    "choose": ([0, 1, 2, 1], [0, 2, 2, 1]),
    "generate": (["the cat sat", "7", "", "on"], ["a cat sat", ("seven", "7"), "x", "on"]),
    "regress": ([0.0, 1.0, 2.5, 0.5], [0.5, 1.0, 2.0, 1.5]),
}

classes = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)
numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
words = st.lists(st.sampled_from("abcd"), max_size=12)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_passes_the_same_examination(name):
    one = metric(name)
    assert one.name == name
    for kind in one.kinds:
        predictions, references = SAMPLES[kind]
        value = one.score(predictions, references)
        assert isinstance(value, float)
        best = one.score([r if kind != "generate" or isinstance(r, str) else r[1] for r in references], references)
        assert best >= value if one.higher_is_better else best <= value
        order = [2, 0, 3, 1]
        shuffled = one.score([predictions[i] for i in order], [references[i] for i in order])
        assert shuffled == pytest.approx(value)
        if one.per_example is not None:
            each = one.per_example(predictions, references)
            assert each.shape == (4,)
            assert each.dtype == np.float64
            assert each.mean() == value
        with pytest.raises(ValueError, match="nothing to measure"):
            one.score([], [])
        with pytest.raises(ValueError, match="3 predictions do not go with 4 references"):
            one.score(predictions[:3], references)


@given(pairs=classes)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(pairs):
    predictions, references = zip(*pairs, strict=True)
    assert metric("accuracy").score(predictions, references) == pytest.approx(
        sklearn_metrics.accuracy_score(references, predictions)
    )
    assert metric("macro_f1").score(predictions, references) == pytest.approx(
        sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0)
    )


@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=3, max_size=30))
def test_correlations_are_those_of_scipy(pairs):
    x, y = zip(*pairs, strict=True)
    assume(np.ptp(x) > 1e-2 and np.ptp(y) > 1e-2)
    assert metric("pearson").score(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-9)
    assert metric("spearman").score(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-9)


def test_correlations_of_constant_vectors_are_zero():
    for name in ("pearson", "spearman"):
        score = metric(name).score
        assert score([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0.0
        assert score([0.1, 0.1, 0.1], [0.3, 0.3, 0.3]) == 0.0
        assert score([1.0], [2.0]) == 0.0
        assert score([1e200, 2e200, 4e200], [1e-200, 2e-200, 4e-200]) == pytest.approx(1.0)
        assert np.isnan(score([float("nan"), 1.0, 2.0], [1.0, 2.0, 3.0]))


def test_mse_is_the_mean_of_squares():
    assert metric("mse").score([1, 2], [0, 4]) == 2.5
    assert metric("mse").higher_is_better is False


# Texts


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("the  answer\n", "the answer", 1),
        ("The answer", "the answer", 0),
        ("-5", "5", 0),
        ("", "", 1),
        ("b", ("a", "b"), 1),
    ],
)
def test_exact_match_forgives_white_space_only(prediction, reference, value):
    assert metric("exact_match").score([prediction], [reference]) == value


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("The Cat!", "cat", 1),  # article, case and punctuation do not count
        ("the cat sat down", "a cat lay", 2 * 1 / (3 + 2)),
        ("cat cat", "cat", 2 * 1 / (2 + 1)),
        ("", "the", 1),  # both are empty once articles are gone
        ("cat", "the", 0),
        ("dog", ("cat", "big dog"), 2 / 3),
    ],
)
def test_token_f1_is_that_of_squad(prediction, reference, value):
    assert metric("token_f1").score([prediction], [reference]) == pytest.approx(value)


def test_squad_tokens_drop_articles_only_as_words():
    assert squad_tokens("The theatre, an anthem: A-level!") == ["theatre", "anthem", "alevel"]


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin 2004, section 3.1: S2 against S1
        ("the gunman kill police", "police killed the gunman", 2 / 4),  # S3 against S1
        ("The cat, sat.", "the cat sat", 1),
        ("a b c d e", "a x c", 2 * 2 / (5 + 3)),
        ("été là", "Été", 2 / 3),
        ("", "a", 0),
        ("!", "!", 0),
        ("b", ("a", "b c"), 2 / 3),
    ],
)
def test_rouge_l_by_worked_values(prediction, reference, value):
    assert metric("rouge_l").score([prediction], [reference]) == pytest.approx(value)


@given(a=words, b=words)
def test_the_common_subsequence_is_that_of_the_table(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert longest_common_subsequence(a, b) == table[-1, -1]


def test_bleu_and_chrf_are_those_of_sacrebleu():
    predictions = ["the cat sat on the mat today", "a dog ran after the cat"]
    references = ["the cat sat on the mat", "the dog ran after a cat"]
    assert metric("bleu").score(predictions, references) == sacrebleu.corpus_bleu(predictions, [references]).score
    assert metric("chrf").score(predictions, references) == sacrebleu.corpus_chrf(predictions, [references]).score
    assert metric("bleu").score(references, references) == pytest.approx(100)
    several = [("no word of it", references[0]), (references[1],)]
    assert metric("bleu").score(references, several) == pytest.approx(100)
    assert metric("chrf").score(references, several) == pytest.approx(100)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("He makes 3 + 4 = 7 dollars.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("so $1,234.50.", "1234.50"),
        ("#### $18\nThat was 2 days", "2"),
        ("the answer is -5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("$ 12", "12"),
        ("10-5", "5"),
        ("f(x)-2", "2"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("12,345,678", "12345678"),
        (".5", "0.5"),
        ("1.5e3", "1500"),
        ("75%", "75"),
        ("7 ####", "7"),
        ("5 #### unknown", "5"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_numeric_match_compares_values():
    score = metric("numeric_match").score
    assert score(["It is $1,200.00 in all."], ["... #### 1200"]) == 1
    assert score(["about 7"], ["#### 8"]) == 0
    assert score(["nothing"], ["nothing"]) == 0
    assert score(["1e99999999999999999999"], ["1"]) == 0


# By name


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(MultituneError, match="Did you mean 'rouge_l'") as error:
        metric("rouge-l")
    assert "accuracy" in error.value.mend


def test_a_task_without_metrics_has_those_of_its_kind():
    assert metrics_of(Task(name="a", kind="label")) == ("accuracy", "macro_f1")
    assert metrics_of(Task(name="a", kind="generate", metrics="chrf")) == ("chrf",)
    assert all(kind in metric(name).kinds for kind, names in DEFAULTS.items() for name in names)
    with pytest.raises(ValueError, match="resolve it first"):
        metrics_of(Task(name="a"))


def test_an_installed_package_offers_a_metric(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(
        "from multitune.tasks.metrics import Metric\n"
        "length_ratio = Metric('length_ratio', ('generate',), True, lambda p, r: len(p[0]) / len(r[0]))\n"
        "no_metric = 3\n"
    )
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[multitune.metrics]\nlength_ratio = their_package:length_ratio\nno_metric = their_package:no_metric\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = metric("length_ratio")
    assert isinstance(found, Metric)
    assert found.score(["ab"], ["abcd"]) == 0.5
    with pytest.raises(MultituneError, match="is a int, not a Metric"):
        metric("no_metric")
    with pytest.raises(MultituneError, match="Did you mean 'length_ratio'"):
        metric("length_ration")
    sys.modules.pop("their_package")


# Of Super-NaturalInstructions


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "value"),
    [
        ("exact_match_superni", "The cat!", "the cat", 1.0),
        ("exact_match_superni", "The cat!", "cat", 0.0),
        ("exact_match_squad", "The cat!", "cat", 1.0),
        ("exact_match", "The cat!", "the cat", 0.0),
        ("rouge_l", "the cat sat", "the cat sat down", 6 / 7),
        ("rouge_l_stemmed", "the cat sat", "the cat sat down", 6 / 7),
        ("rouge_l", "cats running", "cat runs", 0.0),
        ("rouge_l_stemmed", "cats running", "cat runs", 1.0),
        ("rouge_l", "the cat sat", ("a", "the cat sat"), 1.0),
        ("rouge_l_stemmed", "the cat sat", ("a", "the cat sat"), 1.0),
    ],
)
def test_variants_by_worked_values(name, prediction, reference, value):
    pytest.importorskip("rouge_score")
    assert metric(name).score([prediction], [reference]) == pytest.approx(value)


@pytest.mark.parametrize(
    "prediction, reference, right",
    [
        ("12.5%", "12.50 %", True),
        ("12.50 per cent", "12.5%", True),
        ("0.125", "12.5%", True),
        ("12.5%", "0.125", True),
        ("12.5", "12.5%", True),  # a bare number, in the unit of the reference
        ("12.5", "0.125", False),  # no unit on either side
        ("1.25%", "12.5%", False),
        ("the margin is 1,234.5 dollars", "$1,234", True),
        ("1,250", "1,234", False),
        ("0.3", "0.34", False),
        ("0.338", "0.34", True),
        ("-12.5%", "12.5%", False),
        ("0.0", "0", True),
        ("", "12.5%", False),
        ("none", "12.5%", False),
    ],
)
def test_numbers_are_close_in_the_unit_that_is_declared(prediction, reference, right):
    assert metric("numeric_close").per_example([prediction], [reference])[0] == right
    if prediction != reference:
        assert (
            metric("exact_match").per_example([prediction], [reference])[0] == 0.0
        )  # the strict one fails where this passes
