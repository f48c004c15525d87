"""How commands end: exit codes, sentences for people, JSON for programs."""

from __future__ import annotations

import json

import pytest

from multitune.cli import main
from multitune.cli.failures import Stopped, told
from multitune.cli.output import plain
from multitune.errors import MultituneError, MultituneErrors

MISTAKE = MultituneError("The cat is missing.", "house.yaml:3, cat", "Add a cat.")


def failing(error):
    def command():
        raise error

    return command


def test_a_mistake_is_three_sentences_and_code_two(capsys):
    assert told(failing(MISTAKE), json=False, debug=False) == 2
    assert capsys.readouterr().err == "error: The cat is missing.\n  where: house.yaml:3, cat\n  mend:  Add a cat.\n"


def test_all_mistakes_are_told(capsys):
    assert told(failing(MultituneErrors([MISTAKE, MISTAKE])), json=False, debug=False) == 2
    assert "2 mistakes found." in capsys.readouterr().err


def test_programs_get_json_on_stdout(capsys):
    assert told(failing(MISTAKE), json=True, debug=False) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["mend"] == "Add a cat."
    assert captured.err == ""


def test_a_bug_is_one_line_without_debug_and_a_traceback_with_it(capsys):
    assert told(failing(ZeroDivisionError("oh")), json=False, debug=False) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert told(failing(ZeroDivisionError("oh")), json=False, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", [failing(KeyboardInterrupt()), lambda: 130])
@pytest.mark.parametrize(("verb", "keeps"), [("run", True), ("quickstart", True), ("check", False), ("score", False)])
def test_an_interruption_says_what_is_kept_and_how_to_go_on(capsys, command, verb, keeps):
    assert told(command, json=False, debug=False, verb=verb) == 130
    told_of = capsys.readouterr().err
    assert "same command" in told_of
    assert ("checkpoints" in told_of) == keeps


def test_a_training_that_was_stopped_says_its_step_and_checkpoint(capsys):
    assert told(failing(Stopped("Interrupted after step 7.", "run/checkpoint-7")), json=False, debug=False) == 130
    told_of = capsys.readouterr().err
    assert "after step 7" in told_of and "run/checkpoint-7" in told_of and "without --fresh" in told_of


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--version"], 0), (["rum"], 2), (["run"], 2), (["score", "tiny"], 2), (["report", "nowhere"], 2)],
)
def test_the_door(words, code, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == code
    assert capsys.readouterr()


def test_numbers_that_json_lacks_become_null():
    assert plain({"a": float("nan"), "b": (1, float("inf"))}) == {"a": None, "b": [1, None]}
