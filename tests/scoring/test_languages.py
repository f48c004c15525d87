"""Median and best over prompts, then the mean over languages: never the mean of everything."""

from __future__ import annotations

import pytest

from multitune.scoring.languages import (
    Place,
    language_cells,
    language_means,
    languages_seen,
    over_prompts,
    place_of,
)

# By hand: two languages, five prompts. Medians 0.5 and 0.2, so 0.35; best 0.9 and 0.8, so 0.85; everything's mean 0.43.
ENGLISH = (0.5, 0.9, 0.4, 0.6, 0.5)
SWAHILI = (0.1, 0.2, 0.8, 0.2, 0.1)


def rows(task, values, metric="accuracy"):
    return [
        {"task": task, "metric": metric, "value": value, "n": 10, "template": str(i)}
        for i, value in enumerate(values, start=1)
    ]


PLACES = {"nli-en": Place("nli", "en"), "nli-sw": Place("nli", "sw")}


def test_median_then_mean_over_languages():
    cells = language_cells(rows("nli-en", ENGLISH) + rows("nli-sw", SWAHILI), PLACES, {"en": "seen", "sw": "unseen"})
    assert [(cell.language, cell.scores.median, cell.scores.best, cell.scores.prompts) for cell in cells] == [
        ("en", 0.5, 0.9, 5), ("sw", 0.2, 0.8, 5),
    ]  # fmt: skip
    means = {one.seen: (one.languages, one.median, one.best) for one in language_means(cells)}
    assert means["all"] == (("en", "sw"), pytest.approx(0.35), pytest.approx(0.85))
    assert means["all"][1] != pytest.approx(sum(ENGLISH + SWAHILI) / 10)
    assert means["seen"] == (("en",), 0.5, 0.9)
    assert means["unseen"] == (("sw",), 0.2, 0.8)


def test_spread_is_the_standard_deviation_over_prompts():
    assert over_prompts((0.2, 0.4)).spread == pytest.approx(0.02**0.5)
    assert over_prompts((0.2,)).spread is None
    assert over_prompts((0.2, 0.4, 0.6, 0.7)).median == pytest.approx(0.5)


def test_the_best_of_an_error_is_the_lowest():
    cells = language_cells(rows("nli-en", (3.0, 2.0), "mse"), PLACES, {})
    assert cells[0].scores.best == 2.0


def test_data_sets_keep_to_themselves_and_languages_have_one_order():
    places = {**PLACES, "qa-sw": Place("qa", "sw"), "qa-en": Place("qa", "en")}
    found = language_cells(
        rows("nli-en", (0.1,)) + rows("qa-sw", (0.2,)) + rows("qa-en", (0.4,)) + rows("nli-sw", (0.3,)), places, {}
    )
    assert [(cell.dataset, cell.language) for cell in found] == [
        ("nli", "en"), ("nli", "sw"), ("qa", "en"), ("qa", "sw"),
    ]  # fmt: skip
    assert [(one.dataset, one.seen, one.median) for one in language_means(found)] == [
        ("nli", "all", pytest.approx(0.2)), ("qa", "all", pytest.approx(0.3)),
    ]  # fmt: skip


def test_unseen_is_absent_from_pretraining_and_from_training():
    tags = {
        "a-en": {"language": "en", "seen": "yes"},
        "a-sw": {"language": "sw", "seen": "no"},
        "a-th": {"language": "th", "seen": "no"},
        "a-is": {"language": "is"},
        "plain": {},
    }
    assert languages_seen(tags, ["a-sw"]) == {"en": "seen", "sw": "seen", "th": "unseen", "is": ""}


def test_a_task_without_a_language_has_no_place():
    assert place_of("a", {"category": "nli"}) is None
    assert place_of("a-fr", {"language": "fr"}) == Place("a-fr", "fr")
    assert place_of("a-fr", {"language": "fr", "dataset": "a"}) == Place("a", "fr")
