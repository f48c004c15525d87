"""The machinery of reproductions: all arms on the same seeds, kept when finished, judged at the end."""

from __future__ import annotations

import json
import re

import pytest
import torch

from multitune.errors import MultituneError
from multitune.systems import SYSTEMS
from multitune.systems.reproducing import reproduce


def test_all_arms_run_on_the_same_seeds_and_the_result_tells_them(tmp_path, make_system, ran):
    told = []
    result = reproduce(
        make_system(), "small", tmp_path, command="multitune reproduce 99", progress=lambda *what: told.append(what)
    )
    assert ran == [(slope, seed) for seed in range(3) for slope in (1.0, 2.0)]
    assert told[0] == ("flat, seed 0", 0, 6) and told[-1] == ("done", 6, 6)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    flat, steep = result["arms"]
    assert flat["metrics"] == {"height": [1.0, 2.0, 3.0], "missing": [None, None, None]}
    assert steep["metrics"]["height"] == [2.0, 4.0, 6.0]
    higher, absent = result["claims"]
    assert higher["effects"] == [1.0, 2.0, 3.0]
    assert higher["mean"] == 2.0 and higher["met"] == 3
    # 2 - 4.302653 * 1 / sqrt(3) is below one half
    assert higher["interval"] == pytest.approx([-0.484138, 4.484138], abs=1e-5)
    assert higher["verdict"] == "inconclusive"
    assert higher["sign_test_p"] == higher["sign_test_p_holm"] == 0.25
    assert absent["verdict"] == "inconclusive" and absent["mean"] is None and absent["sign_test_p_holm"] is None
    assert result["seeds"] == [0, 1, 2] and result["command"] == "multitune reproduce 99"
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or result["versions"]["torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])


def test_a_result_names_no_machine_and_no_path(tmp_path, make_system):
    result = reproduce(make_system(), "small", tmp_path, seeds=1)
    assert set(result["machine"]) == {"processors", "threads", "memory_gib", "accelerator", "python"}
    assert "/" not in json.dumps(result["machine"]) and str(tmp_path) not in json.dumps(result)


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path, make_system, ran):
    with pytest.raises(KeyboardInterrupt):
        reproduce(make_system(fails_at=1), "small", tmp_path)
    assert ran == [(1.0, 0), (2.0, 0), (1.0, 1)]
    assert not (tmp_path / "result.json").exists()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["small-steep-seed1"]  # checkpoints stay
    ran.clear()
    whole = reproduce(make_system(fails_at=7), "small", tmp_path)
    # other settings of the steep arm: it runs anew; what the flat arm finished stands
    assert ran == [(2.0, 0), (2.0, 1), (1.0, 2), (2.0, 2)]
    ran.clear()
    again = reproduce(make_system(fails_at=7), "small", tmp_path)
    assert ran == []
    assert again["claims"] == whole["claims"] and again["seconds"] == whole["seconds"]


def test_more_seeds_add_to_what_is_kept(tmp_path, make_system, ran):
    reproduce(make_system(), "small", tmp_path, seeds=1)
    ran.clear()
    assert len(reproduce(make_system(), "small", tmp_path, seeds=2)["seeds"]) == 2
    assert ran == [(1.0, 1), (2.0, 1)]


def test_another_version_of_the_account_runs_everything_anew(tmp_path, make_system, ran):
    reproduce(make_system(), "small", tmp_path, seeds=1)
    ran.clear()
    reproduce(make_system(version=2), "small", tmp_path, seeds=1)
    assert len(ran) == 2


def test_a_damaged_file_is_run_again_and_working_files_are_gone(tmp_path, make_system, ran):
    reproduce(make_system(), "small", tmp_path, seeds=1)
    (tmp_path / "arms" / "small" / "flat-seed0.json").write_text('{"fingerprint": ')
    ran.clear()
    reproduce(make_system(), "small", tmp_path, seeds=1)
    assert ran == [(1.0, 0)]
    assert not (tmp_path / "work").exists()
    assert list(tmp_path.rglob("*.partial")) == []


def test_what_cannot_be_reproduced_is_refused(tmp_path, make_system, with_gpu):
    with pytest.raises(MultituneError, match="is to come"):
        reproduce(SYSTEMS[1], "small", tmp_path)
    with pytest.raises(MultituneError, match=r"no scale 'smal'\. Did you mean 'small'\?"):
        reproduce(make_system(), "smal", tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(MultituneError, match="needs a GPU"):
            reproduce(with_gpu(make_system()), "small", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path, make_system):
    (tmp_path / "file").write_text("")
    with pytest.raises(MultituneError, match="cannot be written"):
        reproduce(make_system(), "small", tmp_path / "file")
