"""The effects of a sweep's axes: paired by seed, corrected over tasks, from the folders that a sweep leaves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from multitune.errors import MultituneError
from multitune.reporting import terminal
from multitune.reporting.report import write_report
from multitune.reporting.run_folder import read_run
from multitune.reporting.sweep import answer, effects, read_sweep, setting
from multitune.reporting.terminal import tables
from multitune.scoring.predictions import Prediction, write_predictions
from multitune.scoring.scoreboard import Scoreboard

N = 40
RIGHT = {  # right answers of 40, by mixture, task and seed
    "proportional": {"a": [20, 22, 18, 21], "b": [30, 30, 31, 29]},
    "equal": {"a": [32, 33, 31, 34], "b": [30, 31, 30, 29]},
}


def write_variant(folder: Path, seed: int, mixture: str) -> None:
    recipe = {
        "name": "shares",
        "seed": seed,
        "model": {"name": "tiny"},
        "tasks": {task: {"train": {"path": f"{task}.jsonl"}, "kind": "label"} for task in "ab"},
        "steps": {"joint": {"do": "train", "tasks": "all", "mixture": {"policy": mixture}}},
    }
    rows = []
    for step, right_of in (("base", {"a": 10, "b": 10}), ("joint", {t: RIGHT[mixture][t][seed] for t in "ab"})):
        for task, right in right_of.items():
            answers = [
                Prediction(str(i), f"{task}.jsonl:{i}", "?", "yes" if i < right else "no", "yes", i < right, i < right)
                for i in range(N)
            ]
            write_predictions(folder / "steps" / step / "predictions" / f"{task}.jsonl", answers)
            row = {"run": "shares", "step": step, "model": step, "task": task, "split": "test", "n": N, "seed": seed}
            rows.append(row | {"metric": "accuracy", "value": right / N, "low": 0.0, "high": 1.0})
    (folder / "steps" / "joint" / "scores.json").write_text("{}")
    shared = folder.parents[1] / "nodes" / "base.json"
    shared.parent.mkdir(exist_ok=True)
    shared.write_text("{}")
    (folder / "steps" / "base" / "scores.json").symlink_to(shared)
    Scoreboard(rows).save(folder / "scoreboard.parquet")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "run.json").write_text(json.dumps({"command": "multitune run", "started": "2026-11-20T10:00:00+00:00"}))


def write_sweep(folder: Path, seeds: int) -> Path:
    variants = [
        {"name": f"seed={seed},mixture={mixture}", "values": {"seed": str(seed), "mixture": mixture}}
        for seed in range(seeds)
        for mixture in RIGHT
    ]
    axes = [
        {"name": "seed", "key": "seed", "values": [str(seed) for seed in range(seeds)]},
        {"name": "mixture", "key": "steps.joint.mixture", "values": list(RIGHT)},
    ]
    for variant in variants:
        write_variant(
            folder / "variants" / variant["name"], int(variant["values"]["seed"]), variant["values"]["mixture"]
        )
    (folder / "sweep.json").write_text(json.dumps({"name": "shares", "axes": axes, "variants": variants}))
    return folder


@pytest.fixture
def sweep(tmp_path) -> Path:
    return write_sweep(tmp_path / "shares", seeds=4)


def test_effects_are_paired_by_seed_and_corrected_over_tasks(sweep):
    (table,) = effects(read_sweep(sweep))  # the base is shared: the axis changes nothing of it
    assert (table.axis, table.arm, table.values, dict(table.setting)) == (
        "mixture", "joint", ("proportional", "equal"), {},
    )  # fmt: skip
    a, b = (row.effects["equal"] for row in table.rows)
    # a: differences 12, 11, 13, 13 of 40: mean 12.25, deviation 0.957, +- 3.18245 * 0.957 / 2
    assert a.mean == pytest.approx(12.25 / N)
    assert (a.low, a.high) == pytest.approx(((12.25 - 1.5234) / N, (12.25 + 1.5234) / N), abs=1e-5)
    assert (a.seeds, a.wins, a.losses, a.sign_p) == (4, 4, 0, 0.125)
    assert a.sign_p_holm == 0.25
    assert a.bootstrap_p_holm == pytest.approx(2 * a.bootstrap_p) and a.bootstrap_p < 0.01
    assert a.verdict == "better"
    assert (b.mean, b.wins, b.losses, b.sign_p_holm, b.verdict) == (0.0, 1, 1, 1.0, "unclear")
    (mean,) = table.means
    assert mean.effects["equal"].mean == pytest.approx(12.25 / 2 / N)
    assert mean.scores["equal"].runs == pytest.approx([62 / 80, 64 / 80, 61 / 80, 63 / 80])


def test_more_values_make_more_to_correct_for(tmp_path, monkeypatch):
    monkeypatch.setitem(RIGHT, "again", RIGHT["equal"])
    (table,) = effects(read_sweep(write_sweep(tmp_path / "shares", seeds=4)))
    for value in ("equal", "again"):
        effect = table.rows[0].effects[value]  # two of four differences; the others' p-values are larger
        assert effect.bootstrap_p_holm == pytest.approx(4 * effect.bootstrap_p)
        assert effect.sign_p_holm == 0.5


def test_one_seed_is_judged_over_its_examples(tmp_path):
    (table,) = effects(read_sweep(write_sweep(tmp_path / "shares", seeds=1)))
    a, b = (row.effects["equal"] for row in table.rows)
    assert 0 < a.low < 12 / N < a.high
    assert a.verdict == "better"
    assert b.verdict == "unclear"
    assert table.means[0].effects["equal"].low is None


def test_only_seeds_that_all_values_have_are_compared(sweep):
    (sweep / "variants" / "seed=3,mixture=equal" / "scoreboard.parquet").unlink()
    found = read_sweep(sweep)
    assert found.missing == ("seed=3,mixture=equal",)
    (table,) = effects(found)
    assert table.rows[0].effects["equal"].seeds == 3


def test_a_sweep_without_scores_says_so(tmp_path):
    (tmp_path / "sweep.json").write_text('{"name": "x", "axes": [], "variants": [{"name": "v", "values": {}}]}')
    with pytest.raises(MultituneError, match="Nothing of the sweep has been scored yet"):
        read_sweep(tmp_path)


def test_the_page_tells_effects_and_every_setting(sweep, tmp_path):
    page = write_report([sweep], tmp_path / "page.html").read_text()
    assert "equal minus proportional" in page
    assert "+0.306" in page and "4 – 0" in page
    assert "<h1>shares: mixture=equal</h1>" in page and "<h1>shares: mixture=proportional</h1>" in page
    assert "means over 4 runs" in page


def test_a_variant_is_a_run_like_any_other(sweep, tmp_path):
    variant = sweep / "variants" / "seed=0,mixture=equal"
    assert read_run(variant).seed == 0
    assert "minus before" in write_report([variant], tmp_path / "page.html").read_text()


def test_the_terminal_and_programs_get_the_same_numbers(sweep):
    (printed,) = tables([sweep])
    assert printed.title == "mixture: joint (training tasks)"
    told = answer([sweep])
    assert told["effects"][0].rows[0].effects["equal"].wins == 4
    assert len(told["comparisons"]) == 2


def test_where_only_the_seed_varies_the_means_are_shown(tmp_path):
    folder = write_sweep(tmp_path / "shares", seeds=3)
    described = json.loads((folder / "sweep.json").read_text())
    described["axes"] = described["axes"][:1]
    described["variants"] = [one for one in described["variants"] if one["values"].pop("mixture") == "equal"]
    (folder / "sweep.json").write_text(json.dumps(described))
    assert effects(read_sweep(folder)) == []
    assert [table.title for table in tables([folder])] == ["Training tasks"]
    assert "means over 3 runs" in write_report([folder], tmp_path / "page.html").read_text()


def test_a_setting_leaves_out_the_seed():
    assert setting({"seed": "1", "mixture": "equal", "learning_rate": "0.1"}) == "mixture=equal, learning_rate=0.1"


def test_many_values_stand_below_one_another_in_a_terminal(sweep, monkeypatch):
    monkeypatch.setattr(terminal, "SIDE_BY_SIDE", 1)
    console = Console(width=80, file=io.StringIO(), highlight=False)
    console.print(*terminal.tables([sweep]))
    lines = [line for line in console.file.getvalue().splitlines() if "task" not in line]
    first, second = (next(line for line in lines if f" {value} " in line) for value in RIGHT)
    assert first.split() == ["a", "accuracy", "40", "proportional", "0.506"]
    assert second.split() == ["equal", "0.812", "+0.306*"]
