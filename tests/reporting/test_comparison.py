"""The table task x (before, after, alone): arms, contrasts, verdicts, means, and what has no interval."""

from __future__ import annotations

import json

import pytest

from multitune.reporting.comparison import Contrast, compare, key
from multitune.reporting.report import headline, whiskers
from multitune.reporting.run_folder import read_run
from multitune.scoring.scoreboard import Scoreboard


def rewrite_scores(run, change):
    """Put every row of a run's scoreboard through a function; rows it returns None for go."""
    path = run / "scoreboard.parquet"
    rows = [changed for row in Scoreboard.load(path).rows if (changed := change(row)) is not None]
    Scoreboard(rows).save(path)


def tables_of(*runs):
    (comparison,) = compare([read_run(run) for run in runs])
    return comparison.tables


def test_arms_trained_alone_stand_in_one_column(sample_run):
    trained, held_out = tables_of(sample_run())
    assert trained.arms == ("base", "joint", "alone")
    assert trained.contrasts == (Contrast("joint", "base"), Contrast("joint", "alone"))
    assert held_out.arms == ("base", "joint")
    assert held_out.contrasts == (Contrast("joint", "base"),)


def test_a_recipe_with_arms_alone_only_compares_them_with_the_base(sample_run):
    run = sample_run()
    rewrite_scores(run, lambda row: row if row["step"] != "joint" else None)
    trained, _ = tables_of(run)
    assert trained.contrasts == (Contrast("alone", "base"),)


def test_verdicts_follow_the_interval(sample_run):
    trained, held_out = tables_of(sample_run())
    verdict = {row.task: row.differences["joint - base"].verdict for row in (*trained.rows, *held_out.rows)}
    assert verdict["clinc150"] == "better"
    assert verdict["tweet_offensive"] == "unclear"
    assert verdict["copy_letters"] == "worse"


def test_the_mean_is_the_unweighted_mean_of_the_tasks(sample_run):
    trained, _ = tables_of(sample_run())
    (mean,) = trained.means
    values = [row.scores["joint"].value for row in trained.rows]
    assert mean.scores["joint"].value == pytest.approx(sum(values) / 6)
    difference = mean.differences["joint - base"]
    assert difference.value == pytest.approx(sum(row.differences["joint - base"].value for row in trained.rows) / 6)
    assert difference.low < difference.value < difference.high


def test_tasks_of_other_metrics_are_not_averaged_together(sample_run):
    run = sample_run()
    rewrite_scores(run, lambda row: {**row, "metric": "mse"} if row["task"] == "sst2" else row)
    trained, _ = tables_of(run)
    assert [mean.task for mean in trained.means] == ["mean of the 5 tasks"]


def test_where_less_is_better_a_rise_is_a_loss_and_points_left(sample_run):
    run = sample_run()
    rewrite_scores(
        run, lambda row: {**row, "metric": "mse"} if (row["task"], row["metric"]) == ("sst2", "accuracy") else row
    )
    trained, _ = tables_of(run)
    row = next(row for row in trained.rows if row.metric == "mse")
    assert row.differences["joint - base"].value > 0
    assert row.differences["joint - base"].verdict == "worse"
    drawn = whiskers(trained)["sst2mse", "joint - base"]
    assert drawn.dot < drawn.zero


def test_shares_have_one_scale_whatever_their_metric(sample_run):
    run = sample_run()
    rewrite_scores(run, lambda row: {**row, "metric": "exact_match"} if row["task"] == "clinc150" else row)
    trained, _ = tables_of(run)
    drawn = whiskers(trained)
    lengths = [
        (drawn[row.task + row.metric, "joint - base"].dot - drawn[row.task + row.metric, "joint - base"].zero)
        / row.differences["joint - base"].value
        for row in trained.rows
    ]
    assert lengths == pytest.approx([lengths[0]] * 6, rel=0.05)  # places are rounded to a tenth of a pixel


def test_a_metric_that_is_no_mean_over_examples_has_no_interval(sample_run):
    run = sample_run()
    rewrite_scores(run, lambda row: None if (row["task"], row["metric"]) == ("sst2", "accuracy") else row)
    trained, _ = tables_of(run)
    row = next(row for row in trained.rows if row.task == "sst2")
    assert row.metric == "macro_f1"
    difference = row.differences["joint - base"]
    assert (difference.low, difference.high, difference.verdict) == (None, None, "unclear")


def test_without_predictions_there_is_a_difference_but_no_interval(sample_run):
    run = sample_run()
    (run / "steps" / "base" / "predictions" / "sst2.jsonl").unlink()
    trained, _ = tables_of(run)
    assert trained.rows[0].differences["joint - base"].low is None
    assert trained.rows[0].differences["joint - alone"].low is not None
    assert trained.means[0].differences["joint - base"].low is None


def test_several_seeds_are_paired_run_by_run(sample_run):
    runs = [sample_run(f"run-{seed}", seed=seed) for seed in range(3)]
    alone = [tables_of(run)[0].rows[0].differences["joint - base"].value for run in runs]
    together = tables_of(*runs)[0].rows[0].differences["joint - base"]
    assert together.runs == pytest.approx(alone)
    assert together.value == pytest.approx(sum(alone) / 3)


def test_a_run_that_has_only_scored_the_base_is_a_table_without_differences(sample_run):
    run = sample_run()
    rewrite_scores(run, lambda row: row if row["step"] == "base" else None)
    trained, _ = tables_of(run)
    assert trained.arms == ("base",) and trained.contrasts == ()
    assert headline(trained)["contrast"] is None


def test_the_headline_counts_verdicts_of_the_last_joint_arm(sample_run):
    trained, _ = tables_of(sample_run())
    told = headline(trained)
    assert key(told["contrast"]) == "joint - base"
    assert (told["better"], told["worse"], told["tasks"]) == (5, 0, 6)


def test_comparisons_answer_programs(sample_run, capsys):
    from multitune.cli import main

    run = sample_run()
    with pytest.raises(SystemExit) as end:
        main(["report", str(run), "--json"])
    assert end.value.code == 0
    answered = json.loads(capsys.readouterr().out)
    (comparison,) = answered["comparisons"]
    assert comparison["seeds"] == [0]
    assert comparison["tables"][0]["rows"][0]["scores"]["joint"]["value"] == pytest.approx(0.83, abs=0.03)
    assert answered["report"] == str(run / "report.html")
