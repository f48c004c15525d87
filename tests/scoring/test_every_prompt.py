"""A task with several templates, scored under each of them."""

from __future__ import annotations

import json

import pytest

from multitune.scoring.score import ScoreConfig, score_tasks
from multitune.scoring.scoreboard import Scoreboard, as_chosen, measures, of_templates, score_rows
from multitune.tasks.prompting import resolve
from multitune.tasks.task import Task

ROWS = [{"text": "one", "label": "b"}, {"text": "two", "label": "b"}, {"text": "three", "label": "c"}]


@pytest.fixture
def scored(chain, tmp_path):
    """After a line feed the model says b, after a tab c; the first template ends in one, the second in the other."""
    backbone = chain({"Ċ": {"b": 0.75, "c": 0.25}, "ĉ": {"b": 0.25, "c": 0.75}})
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    task = Task(
        name="letters", kind="label", choices=("b", "c"), target="{{ label }}", test="letters.jsonl",
        prompt=("{{ text }}\n", "{{ text }}\t"), metrics=("accuracy",),
    )  # fmt: skip
    task = resolve(task, tmp_path)

    def score(**settings):
        (found,) = score_tasks(backbone, [task], tmp_path, ScoreConfig(**settings), seed=0)
        return found

    return score


def test_every_template_has_a_score_beside_that_over_all(scored):
    score = scored(templates="each")
    assert (score.template, score.n, score.metrics["accuracy"]) == ("", 6, 0.5)
    found = [(one.template, one.n, one.metrics["accuracy"]) for one in score.others]
    assert found == [("1", 3, pytest.approx(2 / 3)), ("2", 3, pytest.approx(1 / 3))]
    assert len({one.prompts for one in (score, *score.others)}) == 3
    assert score.metrics == scored(templates="all").metrics


def test_every_normalisation_is_told_apart_for_every_template(scored):
    score = scored(templates="each", all_normalisations=True)
    assert len(score.others) + 1 == 3 * 5
    assert [one.template for one in score.others[:4]] == [""] * 4
    rows = score_rows(measures([score]), run="r", step="s", model="m", seed=0)
    assert len(Scoreboard(rows).rows) == len(rows)
    assert [(row["template"], row["normalisation"]) for row in of_templates(rows)] == [("1", "none"), ("2", "none")]


def test_readers_of_one_score_a_task_get_the_one_over_all_templates(scored, tmp_path):
    rows = score_rows(measures([scored(templates="each")]), run="r", step="s", model="m", seed=0)
    path = tmp_path / "scoreboard.parquet"
    Scoreboard(rows).save(path)
    read = Scoreboard.load(path).rows
    assert [(row["template"], row["value"]) for row in as_chosen(read)] == [("", 0.5)]
    assert [row["template"] for row in of_templates(read)] == ["1", "2"]


def test_a_board_without_the_column_has_no_templates(scored):
    rows = score_rows(measures([scored()]), run="r", step="s", model="m", seed=0)
    for row in rows:
        del row["template"]
    assert as_chosen(rows)[0]["template"] == ""
    assert of_templates(rows) == []
