"""A sweep computes what its variants share once, and leaves run folders like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from multitune.errors import MultituneError
from multitune.recipes.executor import run
from multitune.recipes.failures import NodesFailed
from multitune.recipes.loading import load, load_recipe
from multitune.scoring.scoreboard import Scoreboard

NAMES = [f"seed={seed},mixture={mixture}" for seed in (0, 1) for mixture in ("proportional", "equal")]


@pytest.fixture
def swept(recipe):
    recipe["steps"]["alone"] = {**recipe["steps"]["joint"], "tasks": "each"}
    recipe["sweep"] = {
        "seed": [0, 1],
        "steps.joint.mixture": {"proportional": {"policy": "proportional"}, "equal": {"policy": "equal"}},
    }
    return recipe


@pytest.fixture
def go(swept, write, tmp_path):
    """Run the recipe as it stands now into one folder; return what was worked on."""

    def go(*overrides, **options):
        return list(run(load(write(swept), overrides), tmp_path / "sweep", **options).done)

    return go


def test_shared_nodes_are_done_once_and_variants_are_runs(go, swept, write, tmp_path):
    done = go()
    assert sorted(done) == sorted(
        ["base@score"]
        + [f"alone.{task}{end} (seed={seed})" for task in ("sign", "echo") for end in ("", "@score") for seed in (0, 1)]
        + [f"joint{end} ({name})" for name in NAMES for end in ("", "@score")]
    )
    out = tmp_path / "sweep"
    assert len(list((out / "nodes").iterdir())) == len(done)

    rows = Scoreboard.load(out / "scoreboard.parquet").rows
    assert {row["variant"] for row in rows} == set(NAMES)
    for name in NAMES:
        own = Scoreboard.load(out / "variants" / name / "scoreboard.parquet").rows
        assert [row | {"variant": ""} for row in rows if row["variant"] == name] == own

    # the same variant as a run of its own: same scores, same weights
    plain = load_recipe(write({key: value for key, value in swept.items() if key != "sweep"}), ["seed=1"])
    run(plain, tmp_path / "plain")
    variant = out / "variants" / "seed=1,mixture=proportional"
    assert Scoreboard.load(tmp_path / "plain" / "scoreboard.parquet").rows == [
        row | {"variant": ""} for row in rows if row["variant"] == variant.name
    ]
    place = Path("steps") / "joint" / "model" / "adapter_model.safetensors"
    expected = load_file(tmp_path / "plain" / place)
    assert all((tensor == expected[name]).all() for name, tensor in load_file(variant / place).items())
    assert "## Scores" in (variant / "steps" / "joint" / "model" / "README.md").read_text()
    assert json.loads((variant / "run.json").read_text())["seconds"] > 0

    assert go() == []
    assert run(load_recipe(variant / "recipe.yaml"), variant).done == ()


def test_more_values_do_only_what_is_new(go):
    go("sweep.seed=[0]")
    done = go("sweep.seed=[0, 1]")
    assert done and all("seed=1" in label for label in done)
    assert go("sweep.seed=[1]") == []


def test_a_plain_run_inside_a_variant_leaves_the_shared_nodes_alone(go, tmp_path):
    go("sweep.seed=[0]")
    out = tmp_path / "sweep"
    before = {path: path.read_bytes() for path in sorted((out / "nodes").rglob("*")) if path.is_file()}
    variant = out / "variants" / "seed=0,mixture=equal"
    changed = load_recipe(variant / "recipe.yaml", ["steps.joint.training.steps=2", "score.rows=2"])
    assert "joint" in run(changed, variant).done
    assert {path: path.read_bytes() for path in before} == before
    assert go("sweep.seed=[0]") == []
    assert len((variant / "steps" / "joint" / "log.jsonl").read_text().splitlines()) == 3


def test_scores_of_one_model_under_two_settings_share_its_training(go, swept):
    swept["sweep"] = {"score.rows": [2, 3]}
    del swept["steps"]["alone"]
    assert go() == [
        "base@score (rows=2)", "joint", "joint@score (rows=2)", "base@score (rows=3)", "joint@score (rows=3)",
    ]  # fmt: skip


def test_a_sweep_can_be_moved(go, swept, tmp_path):
    go("sweep.seed=[0]")
    shutil.move(tmp_path / "sweep", tmp_path / "moved")
    model = tmp_path / "moved" / "variants" / "seed=0,mixture=equal" / "steps" / "joint" / "model"
    assert (model / "adapter_model.safetensors").is_file()


def test_one_failed_node_does_not_lose_the_others(go, swept, data, tmp_path):
    swept["score"] = False
    swept["sweep"] = {"tasks.echo.train.path": ["data/echo/train.jsonl", "data/echo/broken.jsonl"]}
    broken = data / "data" / "echo" / "broken.jsonl"
    broken.write_text('{"input": "a", "target": "b"}\n{"input": "c"\n')
    with pytest.raises(NodesFailed) as error:
        go()
    labels = {one.what.partition(":")[0] for one in error.value.errors}
    assert labels == {"joint (path=data-echo-broken.jsonl)", "alone.echo (path=data-echo-broken.jsonl)"}
    assert error.value.exit_code == 2
    assert len(list((tmp_path / "sweep" / "nodes").glob("*/artifact.json"))) == 3
    broken.write_text('{"input": "a", "target": "b"}\n')
    assert len(go()) == 2


def test_sweeps_and_plain_runs_do_not_share_a_folder(go, swept, write, tmp_path):
    go("sweep.seed=[0]", "score=false")
    plain = load_recipe(write(swept), ["sweep=null", "score=false"])
    with pytest.raises(MultituneError, match="holds a sweep"):
        run(plain, tmp_path / "sweep")
    run(plain, tmp_path / "sweep", fresh=True)
    assert not (tmp_path / "sweep" / "nodes").exists()
    with pytest.raises(MultituneError, match="holds a run without a sweep"):
        go()
