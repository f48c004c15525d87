"""The bridge to lm-evaluation-harness: the same likelihoods, texts and scores as its own model of the same weights."""

from __future__ import annotations

import json
import string
from types import SimpleNamespace

import pytest
import yaml

from multitune.cli import main
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.loading import load_backbone, save_backbone
from multitune.recipes.harness import HarnessRun, export_tasks, score_harness
from multitune.recipes.scoring import score_model
from multitune.scoring.score import ScoreConfig
from multitune.scoring.scoreboard import Scoreboard
from tests.cli.conftest import quiet_again

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's and its model's own
__all__ = ["quiet_again"]

TASKS = {
    "intent": {
        "test": {"generator": "synthetic:message_intent", "arguments": {"rows": 6, "split": "test", "seed": 2}},
        "kind": "choose", "prompt": "{{ instruction }}\n{{ input }}\n", "target": "{{ target }}", "choices": "choices",
    },
    "copy": {
        "test": {"generator": "synthetic:copy_letters", "arguments": {"rows": 4, "split": "test", "seed": 2}},
        "kind": "generate", "prompt": "{{ instruction }}\n{{ input }}\n", "target": "{{ target }}",
        "max_new_tokens": 12, "stop": ["\n"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(ModelConfig(name="tiny"), [])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    (folder / "suite.yaml").write_text(yaml.safe_dump({"tasks": TASKS}))
    export_tasks(folder / "suite.yaml", folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def both(backbone, tmp_path_factory):
    """Our model, and the harness's own of the same weights."""
    from lm_eval.models.huggingface import HFLM

    from multitune.scoring.harness import HarnessModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_backbone(backbone, folder, merged=False)
    return HarnessModel(backbone), HFLM(pretrained=str(folder), device="cpu", batch_size=4)


def asked(*arguments):
    return [SimpleNamespace(args=one, task_name="x") for one in arguments]


def test_likelihoods_and_greedy_flags_are_those_of_the_harness(both):
    pairs = [
        ("The day after Monday is", " Tuesday"), ("The day after Monday is", " Sunday"), ("Copy: a b c\n", "a b c"),
        ("ends with a space ", "word"), ("", "no context"), ("x", "yyyyyyyyyyyyyyyy"),
    ]  # fmt: skip
    (written,) = both[0].generate_until(asked(("The day after Monday is", {"until": [], "max_gen_toks": 1})))
    pairs += [("The day after Monday is", letter) for letter in (written, *string.printable)]
    ours, theirs = (model.loglikelihood(asked(*pairs)) for model in both)
    for (log_p, greedy), (wanted, also) in zip(ours, theirs, strict=True):
        assert log_p == pytest.approx(wanted, abs=1e-4)
        assert greedy == also
    assert {greedy for _, greedy in ours} == {True, False}


def test_whole_texts_are_read_in_windows(both):
    texts = asked(("A short one.",), ("word " * 700,))
    ours, theirs = (model.loglikelihood_rolling(texts) for model in both)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_texts_are_those_of_the_harness(both):
    requests = asked(
        ("Copy the letters.\na b c\n", {"until": ["\n"], "max_gen_toks": 8}),
        ("Reverse the letters.\nabc\n", {"until": ["\n", "b"], "max_gen_toks": 8, "do_sample": False}),
    )
    ours, theirs = (model.generate_until(requests) for model in both)
    assert [text.strip() for text in ours] == [text.strip() for text in theirs]
    with pytest.raises(MultituneError, match="'num_beams', which is not known here"):
        both[0].generate_until(asked(("a", {"num_beams": 3})))
    with pytest.raises(MultituneError, match="has no tokens"):
        both[0].loglikelihood(asked(("a", "")))


def test_our_tasks_score_the_same_through_the_harness_and_without(exported, tmp_path):
    run = HarnessRun(("intent", "copy"), exported / "tasks")
    lines = score_harness("tiny", run, tmp_path)
    through = {(line["task"], line["metric"]): line for line in lines}
    config = ScoreConfig()
    here = {one.task: one for one in score_model("tiny", exported / "suite.yaml", out=None, seed=0, config=config)}
    assert through["intent", "acc"]["value"] == pytest.approx(here["intent"].metrics["accuracy"])
    assert through["copy", "exact_match"]["value"] == pytest.approx(here["copy"].metrics["exact_match"])
    assert through["intent", "acc"]["n"] == 6
    assert {row["task"] for row in Scoreboard.load(tmp_path / "scoreboard.parquet").rows} == {"intent", "copy"}
    samples = json.loads((tmp_path / "harness/intent.json").read_text())["samples"]["intent"]
    assert len(samples) == 6


def test_what_is_there_is_not_evaluated_again(exported, tmp_path, monkeypatch):
    run = HarnessRun(("intent",), exported / "tasks", rows=2)
    first = score_harness("tiny", run, tmp_path)

    def refuse(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr("multitune.recipes.harness.backbone_of", refuse)
    assert score_harness("tiny", run, tmp_path) == first
    with pytest.raises(AssertionError, match="asked again"):
        score_harness("tiny", HarnessRun(("intent",), exported / "tasks", rows=3), tmp_path)


def ended(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_the_verbs(exported, tmp_path, capsys):
    words = ["score", "tiny", "--harness", "int*", "--include", exported / "tasks", "--rows", 2, "--shots", 0]
    assert ended(*words, "--json") == 0
    lines = json.loads(capsys.readouterr().out)["harness"]
    assert [(line["metric"], line["n"]) for line in lines] == [("acc", 2), ("acc_norm", 2)]
    assert ended("export-harness", exported / "suite.yaml", "--out", tmp_path / "again", "--rows", 2) == 0
    assert "lm_eval --include_path" in capsys.readouterr().out
    assert len((tmp_path / "again/copy.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "What is to be scored?"),
        (["--tasks", "a.yaml", "--harness", "b"], "Only one of --tasks and --harness"),
        (["--harness", "intent", "--include", "nowhere"], "This is no folder"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, said, capsys):
    assert ended("score", "tiny", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_code_beside_a_task_is_not_run_unasked(exported, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    task = (exported / "tasks/intent.yaml").read_text().replace("'{{prompt}}'", "!function here.text")
    (folder / "intent.yaml").write_text(task)
    (folder / "here.py").write_text("def text(doc):\n    return doc['prompt']\n")
    with pytest.raises(MultituneError, match="calls Python code that lies beside it"):
        score_harness("tiny", HarnessRun(("intent",), folder))
    assert score_harness("tiny", HarnessRun(("intent",), folder, rows=2, allow_code=True))[0]["n"] == 2


def test_what_cannot_be_loaded_or_told_is_said(exported, tmp_path):
    folder = tmp_path / "lost"
    folder.mkdir()
    lost = (exported / "tasks/intent.yaml").read_text().replace("intent.jsonl", "gone.jsonl")
    (folder / "intent.yaml").write_text(lost)
    with pytest.raises(MultituneError, match="The data of task 'intent' cannot be loaded"):
        score_harness("tiny", HarnessRun(("intent",), folder))
    number = {"test": TASKS["copy"]["test"], "kind": "regress", "prompt": "a", "target": "1"}
    (tmp_path / "numbers.yaml").write_text(yaml.safe_dump({"tasks": {"number": number}}))
    with pytest.raises(MultituneError, match="is nothing that the harness has"):
        export_tasks(tmp_path / "numbers.yaml", tmp_path / "out")


def test_an_encoder_is_refused():
    from multitune.scoring.harness import HarnessModel

    with pytest.raises(MultituneError, match="An encoder with heads"):
        HarnessModel(SimpleNamespace(form="encoder"))


def test_without_the_harness_it_says_how_to_get_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MultituneError, match="is not installed"):
        score_harness("tiny", HarnessRun(("intent",)))
