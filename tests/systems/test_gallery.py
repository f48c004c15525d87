"""The gallery: 38 systems by number and by name, and pages that equal what the files and results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multitune.errors import MultituneError
from multitune.systems import SYSTEMS, find_system
from multitune.systems.claims import judge
from multitune.systems.pages import committed_result, index_page, status, system_page

ROOT = Path(__file__).parents[2]
STANDING = [system for system in SYSTEMS.values() if system.account is not None]
ROOMS = {
    "tasks", "mixing", "models", "adaptation", "objectives", "training", "weights", "decoding", "scoring", "recipes",
    "tabular", "prompting",
}  # fmt: skip


def test_all_systems_are_there_in_order_and_told_apart():
    assert list(SYSTEMS) == list(range(1, 39))
    assert all(number == system.number for number, system in SYSTEMS.items())
    assert len({system.name.lower() for system in SYSTEMS.values()}) == 38
    assert len({system.slug for system in SYSTEMS.values()}) == 38
    for system in SYSTEMS.values():
        assert system.room in ROOMS
        assert system.claim.endswith(".") and system.title and any(year in system.source for year in ("20", "19"))


@pytest.mark.parametrize("word", ["20", "020", "mftcoder", " MFTCoder ", "20-mftcoder"])
def test_a_system_is_found_by_number_and_by_name(word):
    assert find_system(word) is SYSTEMS[20]


@pytest.mark.parametrize(
    ("word", "hint"), [("39", "The nearest is 38"), ("0", "The nearest is 1 "), ("mftcodr", "'mftcoder'"), ("zzz", "")]
)
def test_an_unknown_system_is_answered_with_the_nearest(word, hint):
    with pytest.raises(MultituneError) as told:
        find_system(word)
    assert hint in told.value.what and f"'{word}'" in told.value.what


def test_the_index_shows_every_system_once():
    page = index_page()
    for system in SYSTEMS.values():
        assert page.count(f"| {system.number} | ") == 1
        assert status(system) in page
    assert page.count("| to come |") == 38 - len(STANDING)


@pytest.mark.parametrize("system", STANDING, ids=lambda system: system.slug)
def test_a_page_tells_everything_that_its_file_says(system):
    page = system_page(system)
    for sentence in (*system.account.published, *system.account.faithful, *system.account.deviates):
        assert sentence in page
    for scale in system.account.scales:
        assert f"multitune reproduce {system.number}" in page
        result = committed_result(system, scale)
        for claim in result["claims"] if result else ():
            assert f"**{claim['key']}: {claim['verdict']}.** {claim['statement']}" in page


@pytest.mark.parametrize("system", STANDING, ids=lambda system: system.slug)
def test_committed_verdicts_follow_from_committed_metrics(system):
    for name, scale in system.account.scales.items():
        result = committed_result(system, name)
        if result is None:
            continue
        assert [arm["name"] for arm in result["arms"]] == [arm.name for arm in scale.arms]
        seeds = [
            {
                arm["name"]: {m: float("nan") if v[k] is None else v[k] for m, v in arm["metrics"].items()}
                for arm in arms
            }
            for k in range(len(result["seeds"]))
            for arms in [result["arms"]]
        ]
        for claim, told in zip(scale.claims, result["claims"], strict=True):
            assert (claim.key, claim.statement, claim.measure, claim.rule) == (
                told["key"], told["statement"], told["measure"], told["rule"]
            )  # fmt: skip
            found = judge(claim, seeds)
            assert (found.verdict, found.met) == (told["verdict"], told["met"])
            if told["mean"] is not None:
                assert found.mean == pytest.approx(told["mean"], abs=2e-5)
                assert (found.low, found.high) == pytest.approx(told["interval"], abs=2e-4)
        assert "/" not in json.dumps([result["machine"], result["command"]])
