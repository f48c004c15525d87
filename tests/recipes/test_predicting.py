"""New rows are answered as scoring answers the rows that it knows the answers of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multitune.errors import MultituneError
from multitune.models.loading import load_saved
from multitune.recipes.executor import run
from multitune.recipes.loading import load_recipe
from multitune.recipes.predicting import predict_files, write_answers
from multitune.scoring.predict import predict
from multitune.scoring.predictions import read_predictions
from tests.recipes.test_encoders import encoder_folder

__all__ = ["encoder_folder"]


@pytest.fixture
def trained(recipe, write, tmp_path) -> Path:
    run(load_recipe(write(recipe)), tmp_path / "run")
    return tmp_path / "run" / "steps" / "joint" / "model"


def without_answers(data: Path, task: str) -> Path:
    """The test rows of a task, their answers taken away."""
    lines = [json.loads(line) for line in (data / "data" / task / "test.jsonl").read_text().splitlines()]
    path = data / f"{task}-new.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k not in ("label", "target")}) + "\n"
                            for row in lines))  # fmt: skip
    return path


def scored(model: Path, task: str) -> list:
    return [row.prediction for row in read_predictions(model.parent / "predictions" / f"{task}.jsonl")]


@pytest.mark.parametrize("task", ["sign", "echo"])
def test_a_model_answers_new_rows_by_the_tasks_it_was_trained_on(trained, data, task):
    answers = list(predict_files(str(trained), [without_answers(data, task)], tasks=None, task=task, rows=None))
    assert [answer.prediction for answer in answers] == scored(trained, task)
    assert [answer.where.rpartition(":")[2] for answer in answers] == ["1", "2", "3", "4", "5", "6"]


def test_a_recipe_says_how_a_model_is_asked(trained, data, model_folder):
    rows, recipe = without_answers(data, "sign"), data / "recipe.yaml"
    answers = predict_files(str(model_folder), [rows, rows], tasks=recipe, task="sign", rows=8)
    assert [answer.prediction in ("minus", "plus") for answer in answers] == [True] * 8


def test_an_encoder_answers_by_its_heads(recipe, write, encoder_folder, data, tmp_path):
    recipe["model"] = str(encoder_folder)
    recipe["tasks"].pop("echo")
    run(load_recipe(write(recipe)), tmp_path / "run")
    model = tmp_path / "run" / "steps" / "joint" / "model"
    out = tmp_path / "answers" / "new.jsonl"
    answers = predict_files(str(model), [without_answers(data, "sign")], tasks=None, task=None, rows=None)
    assert write_answers(answers, out) == 6
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prediction"] for line in lines] == scored(model, "sign")
    assert lines[0]["row"] == {"text": "number -5"}
    backbone = load_saved(model)
    (answer,) = predict(backbone, backbone.tasks[0], [{"text": "number -5"}])  # as the model card says
    assert answer.prediction == lines[0]["prediction"]


def test_rows_that_cannot_be_asked_are_told_and_left_out(trained, tmp_path, caplog):
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"text": "number 1"}\n{"body": "number 2"}\nno json\n')
    answers = predict_files(str(trained), [path], tasks=None, task="sign", rows=None)
    with caplog.at_level("WARNING", logger="multitune"):
        assert len(list(answers)) == 1
    assert "2 rows were left out" in caplog.text and "mixed.jsonl:3" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sine"}, "There is no task 'sine'. Did you mean 'sign'?"),
        ({"task": None}, "There are several tasks"),
        ({"task": "sign", "file": "missing.jsonl"}, "There is no file"),
        ({"task": "sign", "model": "base"}, "does not say which tasks"),
    ],
)
def test_mistakes(trained, data, model_folder, options, message):
    model = str(model_folder) if options.get("model") else str(trained)
    file = Path(options["file"]) if "file" in options else without_answers(data, "sign")
    with pytest.raises(MultituneError, match=message.replace("?", r"\?")):
        list(predict_files(model, [file], tasks=None, task=options["task"], rows=None))


def test_half_written_answers_have_no_name(tmp_path):
    def failing():
        raise MultituneError("It broke.", "here", "Mend it.")
        yield

    with pytest.raises(MultituneError, match="It broke"):
        write_answers(failing(), tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
