"""Curves over demonstrations: out of the main tables, into a part of their own."""

from __future__ import annotations

import math

import pytest

from multitune.reporting.report import write_report
from multitune.reporting.run_folder import read_run
from multitune.reporting.shot_curves import shot_curves
from multitune.scoring.scoreboard import Scoreboard
from tests.reporting.conftest import write_run


def with_curve(folder, seed=0, values=(0.5, 0.6, 0.75)):
    write_run(folder, seed=seed, alone=False)
    board = Scoreboard.load(folder / "scoreboard.parquet")
    shared = {"run": "first-light", "model": "base", "task": "sst2", "split": "test", "n": 300, "seed": seed}
    for shots, value in zip((0, 2, 8), values, strict=True):
        for metric, worth in (("accuracy", value), ("macro_f1", value / 2)):
            row = {"step": f"few@{shots}-shot", "metric": metric, "value": worth, "shots": shots, "low": worth - 0.05}
            board.append([shared | row | {"high": worth + 0.05, "shots_used": 0.75 * shots}])
    board.save(folder / "scoreboard.parquet")
    return read_run(folder)


def test_a_curve_has_a_point_for_every_number_of_demonstrations(tmp_path):
    run = with_curve(tmp_path / "run")
    assert "few@2-shot" not in run.nodes
    (found,) = shot_curves([run])
    assert (found.step, found.model, found.shots) == ("few", "base", (0, 2, 8))
    (curve,) = found.curves
    assert (curve.task, curve.metric) == ("sst2", "accuracy")
    assert [(point.value, point.used) for point in curve.points.values()] == [(0.5, 0.0), (0.6, 1.5), (0.75, 6.0)]
    assert found.panel is not None and "demonstrations 0 to 8" in found.panel.summary


def test_several_runs_are_averaged_and_have_no_interval(tmp_path):
    runs = [with_curve(tmp_path / "a"), with_curve(tmp_path / "b", 1, (0.7, 0.6, 0.25))]
    (curve,) = shot_curves(runs)[0].curves
    assert [point.value for point in curve.points.values()] == [pytest.approx(0.6), 0.6, 0.5]
    assert {point.low for point in curve.points.values()} == {None}


def test_what_cannot_be_drawn_is_a_table_alone(tmp_path):
    (found,) = shot_curves([with_curve(tmp_path / "run", values=(0.5, -0.1, math.nan))])
    assert found.panel is None and len(found.curves) == 1


def test_the_report_shows_them(tmp_path):
    with_curve(tmp_path / "run")
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "How much demonstrations help" in page and "6.0 fit" in page and "[0.700, 0.800]" in page
    assert "few@2-shot" not in page
    write_run(tmp_path / "plain", alone=False)
    assert "demonstrations help" not in write_report([tmp_path / "plain"], tmp_path / "plain.html").read_text()
