"""`multitune prompt-tune`: a YAML file, rows in files, and every mistake with exit code 2."""

from __future__ import annotations

import json

import pytest
import yaml

from multitune.cli import main
from tests.prompting.small_models import byte_level_tokenizer, small_roberta

TEXTS = ["the film moved me", "the song was short", "the play bored us", "the book was long"]


@pytest.fixture
def file(tmp_path):
    tokenizer = byte_level_tokenizer()
    small_roberta(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"text": f"{text} {'a b ' * n}", "label": place % 2} for n in range(3) for place, text in enumerate(TEXTS)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "the film was great", "label": 1}) + "\n")
    training = {"steps": 2, "batch_size": 2}
    told = {
        "model": "base",
        "prompt": {"template": "{text} It was <mask> .", "words": {"0": "terrible", "1": "great"}},
        "data": {"train": "train.jsonl", "test": "test.jsonl", "shots": 2},
        "fine_tuning": training,
        "pretraining": training | {"accumulation": 1},
    }

    def write(**changes):
        (tmp_path / "tune.yaml").write_text(yaml.safe_dump(told | changes))
        return tmp_path / "tune.yaml"

    return write


def answered(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return end.value.code, told.out, told.err


def test_few_rows_are_learned_and_the_rest_is_pre_trained_on(file, tmp_path, capsys):
    code, out, _ = answered(capsys, "prompt-tune", file(), "--out", tmp_path / "out", "--json")
    told = json.loads(out)
    assert code == 0 and told["corpus"] == {"train": 3, "development": 1}, "12 rows less 2 x 2 to learn and to choose"
    assert told["fine_tuned"]["test"] in (0.0, 1.0) and 0 <= told["fine_tuned"]["development"] <= 1
    code, out, _ = answered(capsys, "prompt-tune", file(), "--out", tmp_path / "out")
    assert code == 0 and "pre-trained further, then fine-tuned" in out and "labels of the other texts" in out
    assert (tmp_path / "out/5-fine-tuned/model/prompt.json").exists()


def test_without_shots_the_training_rows_are_the_corpus_with_their_own_labels(file, tmp_path, capsys):
    data = {"train": "train.jsonl"}
    code, out, _ = answered(capsys, "prompt-tune", file(data=data), "--out", tmp_path / "out", "--json")
    told = json.loads(out)
    assert code == 0 and told["labels"] == {"by": "gold", "histogram": {"terrible": 6, "great": 6}}


def test_keys_are_set_from_the_command_line(file, tmp_path, capsys):
    words = ["prompt-tune", file(), "--out", tmp_path / "out", "--set", "way=none", "--json"]
    code, out, _ = answered(capsys, *words)
    assert code == 0 and set(json.loads(out)) == {"out", "few_shot"}


TEMPLATE = {"words": {"0": "terrible", "1": "great"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": {}}, "There is no key 'promt'"),
        ({"prompt": {"template": "{text} .", **TEMPLATE}}, "has no mask"),
        ({"prompt": {"template": "It was <mask> .", **TEMPLATE}}, "has no field"),
        ({"prompt": {"template": "{txt} It was <mask> .", **TEMPLATE}}, "Did you mean 'text'"),
        ({"prompt": {"template": "{text} <mask>", "words": {"0": "terrible", "1": "unheard"}}}, "'unheard' is"),
        ({"prompt": {"template": "{text} <mask>", "words": {"0": "bad", "2": "great"}}}, "No word stands for the"),
        (
            {"prompt": {"template": "{text} <mask>", "words": {"0": "bad", "1": "great", "2": "okay"}}},
            "No training row has the label '2'",
        ),
        ({"prompt": "sst2"}, "Did you mean 'sst-2'"),
        ({"prompt": {"template": "{text} <mask>"}}, "either a name, or a template and words"),
        ({"data": {"train": "train.jsonl", "label": "lable"}}, "Did you mean 'label'"),
        ({"data": {"train": "train.jsonl", "shots": 4}}, "8 are needed"),
        ({"data": {"train": "trian.jsonl"}}, "trian.jsonl"),
        ({"data": {"train": "train.jsonl", "test": {"fraction": 0.5}}}, "is no source of test rows"),
    ],
)
def test_mistakes_are_told_and_nothing_is_left(file, tmp_path, capsys, changes, message):
    code, _, told = answered(capsys, "prompt-tune", file(**changes), "--out", tmp_path / "out")
    assert code == 2 and message in " ".join(told.split())
    assert not (tmp_path / "out/1-few-shot/model").exists()
