"""`multitune evaluate-code` from a file of tasks to scores: every cell once, whatever interrupts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from multitune.cli import main
from multitune.errors import MultituneError
from multitune.models.loading import load_saved, save_backbone
from multitune.recipes import code_evaluation
from multitune.recipes.code_evaluation import Study, evaluate
from multitune.scoring.code.evaluation import Decoding, mode_of
from multitune.scoring.code.sandbox import Limits
from multitune.systems.small_libraries import PROMPT, TARGET, small_decoder
from tests.cli.conftest import quiet_again
from tests.scoring.code.conftest import needs_walls

__all__ = ["quiet_again"]  # around every test here too: some start the command in this process


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "decoder"
    save_backbone(small_decoder(0), folder, merged=False)
    return str(folder)


def source(first: int, count: int) -> dict:
    arguments = {"library": "north", "seed": 0, "first": first, "count": count, "named": False}
    return {"generator": "multitune.systems.small_libraries:rows", "arguments": arguments}


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.yaml"
    north = {
        "kind": "generate", "train": source(0, 20), "test": source(20, 10), "prompt": PROMPT, "target": TARGET,
        "stop": "```", "max_new_tokens": 6, "program": "x = 1\nassert {{ completion | length }} >= 0",
    }  # fmt: skip
    sentiment = {"kind": "label", "test": source(0, 4), "prompt": "{{ code }}", "target": "a", "choices": ["a", "b"]}
    path.write_text(yaml.safe_dump({"tasks": {"north": north, "sentiment": sentiment}}))
    return path


def test_every_cell_is_asked_and_kept(model, tasks, tmp_path, monkeypatch):
    modes = (mode_of("zero-shot"), mode_of("icl:2", 1), mode_of("icl:2", 2), mode_of("rag:1"))
    study = Study(tasks, modes=modes, decoding=Decoding(beams=2))
    cells = evaluate([model], study, tmp_path / "out")
    assert [(cell["mode"], cell["seed"], cell["n"]) for cell in cells] == [
        ("zero-shot", 0, 10), ("icl:2", 1, 10), ("icl:2", 2, 10), ("rag:1", 0, 10),
    ]  # fmt: skip
    assert set(cells[0]["metrics"]) == {"em@1", "em@2", "ast_match", "codebleu"}
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in cells[0]["metrics"].values())
    assert json.loads((tmp_path / "out/scores.json").read_text()) == cells
    assert len(list((tmp_path / "out/cells").iterdir())) == 4

    def refuse(*_):
        raise AssertionError("a finished cell was asked again")

    monkeypatch.setattr(code_evaluation, "backbone_of", refuse)
    assert evaluate([model], study, tmp_path / "out") == cells


@needs_walls
def test_answers_are_run_where_it_is_asked_for(model, tasks, tmp_path):
    (cell,) = evaluate([model], Study(tasks, execute=Limits(), rows=3), tmp_path / "out")
    assert cell["endings"] == {"passed": 3}
    assert cell["metrics"]["pass@1"]["value"] == 1.0
    (other,) = evaluate([model], Study(tasks, rows=3), tmp_path / "out")
    assert "pass@1" not in other["metrics"]
    assert other["endings"] == {}


def test_an_interrupted_cell_goes_on_and_ends_the_same(model, tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(code_evaluation, "ROWS_AT_ONCE", 4)
    study = Study(tasks, decoding=Decoding(samples=2, temperature=1.0))
    whole = evaluate([model], study, tmp_path / "whole")
    seen = []

    def interrupt(told, done, total):
        seen.append((told, done, total))
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([model], study, tmp_path / "out", interrupt)
    (partial,) = (tmp_path / "out/cells").iterdir()
    assert partial.suffix == ".partial"
    assert len(partial.read_text().splitlines()) == 4
    with partial.open("a") as file:
        file.write('{"id": "torn')
    again = evaluate([model], study, tmp_path / "out")
    assert seen[0] == ("north: writing", 4, 10)
    assert again[0]["metrics"] == whole[0]["metrics"]

    def texts(cell):
        with open(cell["answers"]) as file:  # noqa: PTH123
            return [json.loads(line)["answers"] for line in file]

    assert texts(again[0]) == texts(whole[0])


@pytest.mark.filterwarnings("ignore:.*_checkpointing.*:FutureWarning")  # peft 0.21 asks for it
def test_adapters_are_added_into_the_weights_before_they_write(model, tasks, tmp_path, monkeypatch):
    backbone = load_saved(Path(model))
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    backbone.model = get_peft_model(backbone.model, lora)
    save_backbone(backbone, tmp_path / "lora", merged=False)
    loaded, writes = [], code_evaluation.written
    monkeypatch.setattr(
        code_evaluation, "written", lambda backbone, *rest: loaded.append(backbone.model) or writes(backbone, *rest)
    )
    cells = [
        evaluate([str(tmp_path / "lora")], Study(tasks, rows=4, merged=merged), tmp_path / "out")[0]
        for merged in (True, False)
    ]
    assert [hasattr(model, "peft_config") for model in loaded] == [False, True]
    assert cells[0]["answers"] != cells[1]["answers"]
    assert cells[0]["metrics"] == cells[1]["metrics"]
    for cell in cells:
        assert cell["tokens_per_second"] > 0
        assert 0 < cell["tokens"] <= 4 * 6
        assert cell["peak_bytes"] > 2**20


def test_other_settings_are_other_cells(model, tasks, tmp_path):
    names = set()
    for study in (Study(tasks, rows=3), Study(tasks, rows=4), Study(tasks, rows=3, decoding=Decoding(beams=2))):
        names |= {cell["answers"] for cell in evaluate([model], study, tmp_path / "out")}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"names": ("nroth",)}, "There is no task 'nroth'. Did you mean 'north'"),
        ({"names": ("sentiment",)}, "No task of kind generate"),
        ({"modes": (mode_of("icl:50"),)}, "50 demonstrations are asked for, and the training rows are 20"),
    ],
)
def test_what_cannot_be_asked_is_refused(model, tasks, tmp_path, study, said):
    with pytest.raises(MultituneError) as error:
        evaluate([model], Study(tasks, **study), tmp_path / "out")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("key", "study", "said"),
    [
        ("program", {"execute": Limits()}, "does not say how an answer is tested"),
        ("train", {"modes": (mode_of("rag:1"),)}, "has no training rows to show as examples"),
    ],
)
def test_what_a_task_lacks_is_said_before_a_model_is_loaded(tasks, tmp_path, key, study, said):
    told = yaml.safe_load(tasks.read_text())
    del told["tasks"]["north"][key]
    tasks.write_text(yaml.safe_dump(told))
    with pytest.raises(MultituneError, match=said):
        evaluate(["nowhere"], Study(tasks, **study), tmp_path / "out")


def test_a_damaged_cell_is_told_with_its_line(model, tasks, tmp_path):
    (cell,) = evaluate([model], Study(tasks, rows=3), tmp_path / "out")
    with open(cell["answers"], "a") as file:  # noqa: PTH123
        file.write("torn\n")
    with pytest.raises(MultituneError, match="This line is no answer"):
        evaluate([model], Study(tasks, rows=3), tmp_path / "out")


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_the_verb_answers_in_words_and_json(model, tasks, tmp_path, capsys):
    words = ["evaluate-code", model, "--tasks", tasks, "--out", tmp_path / "out", "--rows", 3]
    words += ["--mode", "zero-shot", "--mode", "icl:1", "--seed", 1, "--seed", 2]
    assert ended(*words) == 0
    told = capsys.readouterr().out
    assert told.count("icl:1") == 2
    assert "em@1" in told
    assert ended(*words, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(cell["mode"], cell["seed"]) for cell in answer["cells"]] == [("zero-shot", 0), ("icl:1", 1), ("icl:1", 2)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weak-walls"], "Nothing is run without --execute"),
        (["--samples", "3"], "3 answers without a temperature would all be the same"),
        (["--beams", "3", "--temperature", "1"], "Beams are searched, not drawn"),
        (["--mode", "few"], "There is no mode 'few'"),
    ],
)
def test_words_that_do_not_go_together_are_refused(model, tasks, tmp_path, capsys, words, said):
    assert ended("evaluate-code", model, "--tasks", tasks, "--out", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out/cells").exists() or not list((tmp_path / "out/cells").iterdir())
