"""`multitune methods` tells what adapts a model, and how large each method is on one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from multitune.adaptation.methods import METHODS, NOT_OFFERED
from multitune.cli import main


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code


def test_the_list_holds_every_method_and_needs_no_heavy_library():
    program = (
        "import sys; sys.argv = ['multitune', 'methods', '--json']; import runpy\n"
        "try: runpy.run_module('multitune', run_name='__main__')\n"
        "except SystemExit: print([n for n in ('torch', 'peft', 'transformers') if n in sys.modules], file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    listed = json.loads(answer.stdout)
    assert {facts["name"] for facts in listed} == set(METHODS) - set(NOT_OFFERED)
    assert answer.stderr.strip() == "[]"


def test_one_method_is_told_with_its_options_and_its_source(capsys):
    assert ended("methods", "lora") == 0
    told = capsys.readouterr().out
    assert "r (d_in + d_out) per matrix" in told
    assert "https://arxiv.org/abs/2106.09685" in told
    assert "lora_dropout" in told


def test_methods_are_counted_on_a_model_within_a_budget(capsys):
    assert ended("methods", "lora", "--model", "tiny", "--budget", "0.01", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sized"] == {"lora_alpha": 2, "r": 1}
    assert (facts["trainable"], facts["problem"]) == (23_680, None)
    assert ended("methods", "p_tuning", "--model", "tiny", "--budget", "100", "--json") == 0
    assert "too small for p_tuning" in json.loads(capsys.readouterr().out)["problem"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("loar",), "Did you mean 'lora'?"),
        (("--budget", "5"), "A budget needs a model"),
        (("--model", "nowhere/at-all"), "cannot be"),
    ],
)
def test_bad_words_are_told(words, message, capsys):
    assert ended("methods", *words) == 2
    assert message in capsys.readouterr().err
