"""`multitune systems` and `multitune reproduce` as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from multitune.cli import main
from multitune.cli.systems import write_docs
from multitune.systems import SYSTEMS
from multitune.systems.reproducing import Finished, arm_fingerprint, keep, kept_path

ROOT = Path(__file__).parents[2]


TO_COME = str(max(number for number, system in SYSTEMS.items() if system.account is None))


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_the_list_for_programs(capsys):
    assert ended("systems", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["number"] for one in listed] == list(range(1, 39))
    assert {one["number"] for one in listed if one["stands"]} == {
        number for number, system in SYSTEMS.items() if system.account is not None
    }
    assert set(listed[0]) == {"number", "name", "title", "source", "claim", "room", "stands", "status", "verdicts"}
    assert listed[0]["status"] == "to come" and listed[0]["verdicts"] == {}


def test_the_list_and_the_pages_for_people(capsys):
    assert ended("systems") == 0
    printed = capsys.readouterr().out
    assert all(system.name.split()[0] in printed for system in SYSTEMS.values())
    assert ended("systems", "mftcoder") == 0
    assert "What deviates" in capsys.readouterr().out
    assert ended("systems", TO_COME) == 0
    assert "to come" in capsys.readouterr().out


def test_a_page_for_programs(capsys):
    assert ended("systems", "20", "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert page["number"] == 20 and page["scales"]["small"]["seeds"] == 5
    assert page["deviates"] and page["published"]


def test_unknown_systems_and_systems_to_come(tmp_path, capsys):
    assert ended("systems", "mftcodr") == 2
    assert "Did you mean 'mftcoder'?" in capsys.readouterr().err
    assert ended("reproduce", "77", "--out", tmp_path / "out", "--json") == 2
    assert "The nearest is 38" in json.loads(capsys.readouterr().out)["error"]["what"]
    assert ended("reproduce", TO_COME, "--out", tmp_path / "out") == 2
    assert "is to come" in capsys.readouterr().err
    assert ended("reproduce", "20", "--scale", "medium", "--out", tmp_path / "out") == 2
    assert "no scale 'medium'" in capsys.readouterr().err
    assert ended("reproduce", "20", "--seeds", "0") == 2
    assert not (tmp_path / "out").exists()


def test_listing_loads_nothing_heavy():
    code = (
        "import sys, multitune.cli.systems, multitune.systems; print('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_kept_is_judged_without_running_it_again(tmp_path, capsys):
    """All arms of system 20 are laid down as finished: the command only has to judge them."""
    system = SYSTEMS[20]
    for arm in system.account.scales["small"].arms:
        for seed in range(2):
            metrics = {f"{kind}/{task}": 0.5 for task in arm.settings["tasks"] for kind in ("nll", "accuracy")}
            metrics |= {"slope_turned": 300.0, "weight_after": 0.3}
            path = kept_path(tmp_path, "small", arm, seed)
            keep(path, arm_fingerprint(system, "small", arm, seed), Finished(metrics, 1.0, 1.0))
    assert ended("reproduce", "20", "--seeds", "2", "--out", tmp_path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    verdicts = {claim["key"]: claim["verdict"] for claim in result["claims"]}
    assert verdicts["1"] == "not reproduced"  # no seed of the two lowers the loss, so four of five cannot
    assert verdicts["2a"] == verdicts["4a"] == "not reproduced"
    assert verdicts["3a"] == verdicts["4b"] == "reproduced"  # equal is as good
    assert result["command"] == "multitune reproduce 20 --scale small --seeds 2"
    assert json.loads((tmp_path / "result.json").read_text())["claims"] == result["claims"]


def test_the_documentation_is_what_the_systems_say(tmp_path):
    """When this fails: multitune systems --docs docs/systems."""
    written = write_docs(tmp_path)
    committed = ROOT / "docs" / "systems"
    assert {path.name for path in committed.iterdir()} == {path.name for path in written}
    for path in written:
        assert (committed / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), path.name
