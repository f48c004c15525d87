"""Samples, logs and facts: what the page's parts are made of."""

from __future__ import annotations

import json

import pytest

from multitune.reporting import facts, training_curves
from multitune.reporting.comparison import compare
from multitune.reporting.report import breakable, signed_text, write_report
from multitune.reporting.run_folder import read_run
from multitune.reporting.samples import pick_samples
from multitune.scoring.predictions import Prediction, read_predictions, write_predictions


def samples_of(run):
    record = read_run(run)
    (comparison,) = compare([record])
    return {one.task: one for one in pick_samples(record, comparison.tables)}


def test_samples_say_what_became_of_an_answer(sample_run):
    run = sample_run()
    chosen = samples_of(run)["sst2"]
    before = {one.id: one for one in read_predictions(run / "steps/base/predictions/sst2.jsonl")}
    after = read_predictions(run / "steps/joint/predictions/sst2.jsonl")
    learned = [one for one in after if one.correct and not before[one.id].correct]
    assert chosen.counts["learned"] == len(learned)
    assert sum(chosen.counts.values()) == len(after)
    assert [one.where for one in chosen.samples if one.kind == "learned"] == [one.where for one in learned[:2]]


def test_answers_that_are_neither_right_nor_wrong_are_shown_from_both_ends(sample_run):
    run = sample_run()
    scores = [0.1, 0.9, 0.5, 0.7, 0.3]
    answers = [Prediction(str(i), f"f:{i}", "p", 1.0, 2.0, None, score) for i, score in enumerate(scores)]
    write_predictions(run / "steps/joint/predictions/sst2.jsonl", answers)
    chosen = samples_of(run)["sst2"]
    assert [(one.kind, one.where) for one in chosen.samples] == [
        ("highest score", "f:1"), ("highest score", "f:3"), ("lowest score", "f:0"), ("lowest score", "f:4"),
    ]  # fmt: skip
    assert chosen.counts == {}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_answers_are_not_shown_twice(sample_run, count):
    run = sample_run()
    answers = [Prediction(str(i), f"f:{i}", "p", 1.0, 2.0, None, float(i)) for i in range(count)]
    write_predictions(run / "steps/joint/predictions/sst2.jsonl", answers)
    shown = [one.where for one in samples_of(run)["sst2"].samples]
    assert len(set(shown)) == len(shown) == count


def test_long_texts_are_cut_and_say_so(sample_run):
    run = sample_run()
    path = run / "steps/joint/predictions/sst2.jsonl"
    write_predictions(path, [Prediction("x", "f:1", "long " * 1000, "a", "a", True, 1.0)])
    (sample,) = samples_of(run)["sst2"].samples
    assert sample.prompt.endswith("[... 3,500 more characters]")


def test_portions_are_sums_over_the_log(sample_run):
    run = sample_run()
    line = {"loss": 1.0, "repeats": {"a": 0.5}, "tokens_per_second": 100.0, "labelled_tokens_per_second": 10.0}
    lines = [
        {**line, "step": 2, "seconds": 1.0, "tasks": {"a": {"loss": 1, "tokens": 30, "examples": 3, "share": 1.0}}},
        {
            **line,
            "step": 3,
            "seconds": 3.0,
            "tokens_per_second": 200.0,
            "tasks": {
                "a": {"loss": 1, "tokens": 10, "examples": 1, "share": 0.25},
                "b": {"loss": 2, "tokens": 60, "examples": 4, "share": 0.75},
            },
        },
    ]
    (run / "steps/joint/log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    record = read_run(run)
    (table,) = training_curves.mixtures(record)
    a, b = table.portions
    assert (a.examples, a.tokens, a.repeats) == (4, 40, 0.5)
    assert (b.examples_share, b.tokens_share, b.repeats) == (0.5, 0.6, None)
    assert a.weight_share == pytest.approx((2 * 1.0 + 1 * 0.25) / 3)  # two steps at 1, one at 1/4
    speed = next(one for one in training_curves.throughput([record]).speeds if one.arm == "joint")
    assert speed.tokens_per_second == pytest.approx((100 * 1 + 200 * 3) / 4)
    assert (speed.steps, speed.seconds) == (3, 4.0)


def test_curves_of_arms_alone_share_the_chart_of_their_task(sample_run):
    curves = training_curves.loss_panels([read_run(sample_run())])
    assert [panel.title for panel in curves.tasks][:2] == ["sst2", "subj"]  # in the order of the scoreboard
    assert [label.text for label in curves.tasks[0].labels] == ["joint", "alone"]
    assert [line.name for line in curves.overall.lines] == ["joint"]


def test_a_loss_that_is_no_number_leaves_a_gap(sample_run):
    run = sample_run()
    path = run / "steps/joint/log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["tasks"]["sst2"]["loss"] = None
        line["loss"] = None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = training_curves.loss_panels([read_run(run)])
    assert curves.overall is None
    assert [label.text for label in curves.tasks[0].labels] == ["alone"]
    assert write_report([run], run / "report.html").is_file()


FORMS = {
    "heads.json": "load_saved(Path(",
    "adapter_config.json": "PeftModel.from_pretrained(base,",
    "config.json": "AutoModelForSeq2SeqLM.from_pretrained(",
}


@pytest.mark.parametrize("file", FORMS)
def test_loading_code_is_python_and_fits_what_lies_in_the_folder(sample_run, file):
    run = sample_run()
    model = run / "steps" / "joint" / "model"
    (model / "adapter_config.json").unlink()
    content = {"architectures": ["T5ForConditionalGeneration"], "base_model_name_or_path": "owner/model"}
    (model / file).write_text(json.dumps(content))
    told = facts.how_to_load(read_run(run), "joint")
    compile(told.code, "loading", "exec")
    assert FORMS[file] in told.code


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.26, "4.3 s"), (48, "48 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert facts.duration(seconds) == text


def test_signs():
    assert [signed_text(value) for value in (0.25, -0.25, -0.0001, 12.34)] == ["+0.250", "−0.250", "0.000", "+12.3"]


def test_names_break_after_their_joints_and_stay_text():
    assert str(breakable("tweet_emotion")) == "tweet_<wbr>emotion"
    assert str(breakable("a_<b>")) == "a_<wbr>&lt;b&gt;"
