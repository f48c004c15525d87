"""The page's tables by language: from a recipe's tags and the scores of single templates."""

from __future__ import annotations

import pytest
import yaml

from multitune.reporting.languages import language_tables, trained_tasks
from multitune.reporting.report import write_report
from multitune.reporting.run_folder import read_run
from multitune.scoring.scoreboard import Scoreboard

GRID = {
    "sst2": {"dataset": "mood", "language": "en", "seen": "yes"},
    "subj": {"dataset": "mood", "language": "fr"},
    "copy_letters": {"dataset": "letters", "language": "th", "seen": "no"},
    "sort_numbers": {"dataset": "letters", "language": "is"},
}


def tagged(run, tags=GRID):
    path = run / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for task, own in tags.items():
        recipe["tasks"][task]["tags"] = own
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return run


def with_prompts(run, task, offsets):
    """Give a task a score per prompt beside the one over all."""
    board = Scoreboard.load(run / "scoreboard.parquet")
    board.append(
        {**row, "template": str(i), "value": row["value"] + offset}
        for row in board.rows
        if row["task"] == task
        for i, offset in enumerate(offsets, start=1)
    )
    board.save(run / "scoreboard.parquet")


def test_a_run_without_languages_has_no_table(sample_run):
    run = sample_run()
    assert language_tables([read_run(run)]) == []
    assert language_tables([read_run(tagged(run, {"sst2": {"language": "en"}}))]) == []


def test_median_and_best_by_language_and_their_means(sample_run, tmp_path):
    run = tagged(sample_run(alone=False))
    with_prompts(run, "sst2", (-0.2, 0.0, 0.1, 0.05, -0.1))
    read = read_run(run)
    moods, letters = language_tables([read])
    assert (moods.dataset, moods.metric, moods.languages, moods.groups) == (
        "mood", "accuracy", ("en", "fr"), ("seen", "all"),
    )  # fmt: skip
    assert moods.prompts == (1, 5) and moods.shaded
    value = {(row["step"], row["task"], row["metric"]): row["value"] for row in read.scores}
    before, joint = moods.rows
    assert (before.node, joint.node) == ("base", "joint")
    english = joint.cells["en"].scores
    assert english.median == pytest.approx(value["joint", "sst2", "accuracy"])
    assert english.best == pytest.approx(value["joint", "sst2", "accuracy"] + 0.1)
    assert [cell.seen for cell in before.cells.values()] == ["seen", ""]
    assert [cell.seen for cell in joint.cells.values()] == ["seen", "seen"]  # French was trained on
    assert before.means["seen"].languages == ("en",) and joint.means["seen"].languages == ("en", "fr")
    own = letters.rows[1]
    assert [cell.seen for cell in own.cells.values()] == ["unseen", ""]
    assert set(own.means) == {"all", "unseen"} and own.means["unseen"].languages == ("th",)
    assert own.means["unseen"].median == pytest.approx(value["joint", "copy_letters", letters.metric])
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "mean, unseen" in page and "1 to 5 prompts per task" in page


def test_a_model_has_seen_what_those_before_it_were_trained_on(sample_run):
    run = read_run(tagged(sample_run(alone=False)))
    assert trained_tasks(run, "base") == []
    assert "sst2" in trained_tasks(run, "joint")
    run.recipe["steps"]["later"] = {"do": "score", "model": "joint"}
    assert trained_tasks(run, "later") == trained_tasks(run, "joint")
    run.recipe["steps"]["merged"] = {"do": "merge", "models": ["joint"]}
    assert trained_tasks(run, "merged") == trained_tasks(run, "joint")
