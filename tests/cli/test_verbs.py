"""What the verbs promise beside their work: whole files, JSON alone on stdout, completion, options everywhere."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from multitune.cli import app, main
from multitune.cli.output import plain, speak


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "length.jsonl"
    rows = [{"text": word, "label": "long" if len(word) > 3 else "short"} for word in ("cat", "mouse", "ox", "horse")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 5))
    return path


def test_init_writes_a_recipe_and_never_over_one(data, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    assert ended("init", data, "--out", recipe) == 0
    assert "multitune run" in capsys.readouterr().out
    text = recipe.read_text()
    assert ended("init", data, "--out", recipe) == 2
    assert "exists already" in capsys.readouterr().err
    assert recipe.read_text() == text
    assert ended("init", data, "--out", recipe, "--force", "--model", "org/name") == 0
    assert "model: org/name" in recipe.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["length.jsonl", "recipe.yaml"]


def test_init_tells_programs_where_and_what(data, tmp_path, capsys):
    assert ended("init", data, "--out", tmp_path / "r.yaml", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    text = (tmp_path / "r.yaml").read_text()
    assert answer == {"recipe": str(tmp_path / "r.yaml"), "text": text, "open": [], "remarks": []}


def test_init_makes_the_folder_of_its_recipe_where_it_can(data, tmp_path, capsys):
    assert ended("init", data, "--out", tmp_path / "new" / "r.yaml") == 0
    assert "../length.jsonl" in (tmp_path / "new" / "r.yaml").read_text()
    assert ended("init", data, "--out", data / "r.yaml") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_init_tells_what_to_fill_in_and_what_to_look_at(data, tmp_path, capsys):
    rows = [{"id": i, "title": f"title {i}", "body": f"words {i} " * 3, "mark": f"m{i}"} for i in range(20)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with data.open("a") as file:
        file.write('{"text": "horsd", "label": "lomg"}\nno json\n')
    recipe = tmp_path / "r.yaml"
    assert ended("init", data, tmp_path / "odd.jsonl", "--out", recipe) == 0
    told = capsys.readouterr()
    assert "Fill in prompt and target of odd" in told.out
    assert "length: 1 of 22 rows cannot be used, the first at" in told.err
    assert "labels that occur once, typing errors perhaps: lomg" in told.err
    assert "# Its fields: id, title, body, mark." in recipe.read_text()
    assert ended("init", tmp_path / "odd.jsonl", "--out", recipe, "--force") == 0
    assert ended("check", recipe) == 2
    assert "FIELD" in capsys.readouterr().err


def test_a_report_of_nothing_is_the_users_mistake(tmp_path, capsys):
    assert ended("report", tmp_path / "nowhere", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == 2
    assert not (tmp_path / "nowhere").exists()


def test_schema_is_json(capsys):
    assert ended("schema") == 0
    assert "steps" in json.loads(capsys.readouterr().out)["properties"]


def test_debug_is_allowed_before_and_after_the_verb(tmp_path, capsys):
    for words in (("--debug", "check", tmp_path / "x.yaml"), ("check", tmp_path / "x.yaml", "--debug")):
        assert ended(*words) == 2
        assert "Traceback" in capsys.readouterr().err


def test_usage_errors_are_json_where_json_was_asked_for(capsys):
    assert ended("check", "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["where"] == "multitune check"
    assert "--help" in error["mend"]


@pytest.mark.parametrize("verb", ["init", "check", "run", "score", "evaluate-code", "report", "quickstart"])
def test_every_verb_that_answers_knows_json(verb, capsys):
    assert ended(verb, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_scoring_knows_which_prompts_there_are(capsys):
    assert ended("score", "tiny", "--tasks", "tasks.yaml", "--soft-prompt", "on") != 0
    assert "Use one of: own, off, always." in capsys.readouterr().err


def test_every_verb_has_a_line_of_help():
    assert all(command.callback.__doc__ for command in app.registered_commands)


def test_verbs_complete():
    done = subprocess.run(
        [sys.executable, "-c", "from multitune.cli import main; main()"],
        env={
            **os.environ,
            "_MULTITUNE_COMPLETE": "complete_bash",
            "COMP_WORDS": "multitune r",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["run", "report", "reproduce"], done.stderr


def test_the_log_goes_to_stderr_once(capsys):
    for _ in range(2):
        speak()
    logging.getLogger("multitune.tasks").info("read [3] rows")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("read [3] rows") == 1


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError, match="object has no JSON form"):
        plain({"x": object()})
