"""From few labels to a model behind continued pre-training: every stage once, and only from what it may know."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import BertModel

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.prompting.config import FineTuning, Pretraining
from multitune.prompting.learning import predict
from multitune.prompting.pipeline import Data, Prompt, load_prompted, pcp_pipeline
from multitune.prompting.shipped import shipped_prompt
from tests.prompting.small_models import byte_level_tokenizer, small_bert, small_roberta
from tests.small_llama import small_llama

WORDS = ["the film moved me", "the play bored us", "the song was short", "the book was long", "a b", "the short film"]
ROWS = [{"a": text} for text in WORDS]
TRAIN, TEST = (ROWS[:2], [1.0, 0.0]), (ROWS[4:], [1.0, 0.0])
DATA = Data(TRAIN, ([], []), [*ROWS[2:4], *ROWS[4:5], {"a": "the long play"}], None, TEST)
FINE, PRE = FineTuning(steps=3, batch_size=2, learning_rates=(1e-3,)), Pretraining(
    steps=3, batch_size=2, accumulation=1, learning_rate=1e-3, evaluate_every=3
)  # fmt: skip


@pytest.fixture
def base(tmp_path):
    tokenizer = byte_level_tokenizer()
    small_roberta(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return ModelConfig(name=str(tmp_path / "base"))


def run(base, folder, *, data=DATA, soft=False, causal=False, pretraining=PRE, **how):
    prompt = Prompt(*shipped_prompt("sst-2", soft=soft), soft=soft, causal=causal)
    return pcp_pipeline(base, prompt, data, FINE, pretraining, folder, seed=0, **how)


def changed(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}


def test_every_stage_is_done_once_and_only_what_a_change_touches_again(base, tmp_path):
    facts = run(base, tmp_path / "out")
    assert set(facts) == {"few_shot", "labels", "corpus", "pretrained", "fine_tuned"}
    assert facts == json.loads((tmp_path / "out/result.json").read_text())
    assert sum(facts["labels"]["histogram"].values()) == 3, "a text of the test rows is not labelled"
    lines = "".join(path.read_text() for path in (tmp_path / "out/3-corpus").glob("*.txt")).splitlines()
    assert len(lines) == 3 and all(line.endswith((" It was great .", " It was terrible .")) for line in lines)
    assert not any(line.startswith("a b ") for line in lines)
    assert not list((tmp_path / "out").glob("*/work*"))
    first = changed(tmp_path / "out")
    assert run(base, tmp_path / "out") == facts and changed(tmp_path / "out") == first
    run(base, tmp_path / "out", pretraining=PRE.model_copy(update={"learning_rate": 1e-4}))
    again = changed(tmp_path / "out")
    assert {name for name in first if again[name] != first[name]} == {"4-pretrained", "5-fine-tuned"}


def test_pretraining_begins_at_the_base_and_zero_steps_leave_plain_fine_tuning(base, tmp_path):
    facts = run(base, tmp_path / "out", pretraining=PRE.model_copy(update={"steps": 0}))
    assert facts["few_shot"] == facts["fine_tuned"]
    plain, encoder = load_prompted(tmp_path / "out/1-few-shot/model")
    behind, _ = load_prompted(tmp_path / "out/5-fine-tuned/model")
    weights = behind.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in plain.state_dict().items())
    assert encoder.template.text == "{a} It was <mask> ."


def test_gold_labels_are_taken_as_they_are(base, tmp_path):
    gold = [0.0, 1.0, 0.0, 1.0]
    facts = run(base, tmp_path / "out", data=replace(DATA, gold=gold))
    assert json.loads((tmp_path / "out/2-labels/labels.json").read_text()) == [0.0, 1.0, 1.0], "less the test text"
    assert facts["labels"]["by"] == "gold"


def test_raw_texts_have_neither_template_nor_label(base, tmp_path):
    facts = run(base, tmp_path / "out", way="tapt")
    assert "labels" not in facts
    lines = "".join(path.read_text() for path in (tmp_path / "out/3-corpus").glob("*.txt")).splitlines()
    assert sorted(lines) == ["the book was long", "the long play", "the song was short"]


def test_without_pretraining_there_is_the_first_stage_alone(base, tmp_path):
    assert set(run(base, tmp_path / "out", way="none")) == {"few_shot"}
    assert not (tmp_path / "out/3-corpus").exists()


@pytest.mark.parametrize(("soft", "causal"), [(True, False), (False, True)])
def test_soft_prompts_and_causal_models_go_the_same_way(soft, causal, base, tmp_path):
    if causal:
        small_llama(len(byte_level_tokenizer())).save_pretrained(tmp_path / "base")
    run(base, tmp_path / "out", soft=soft, causal=causal)
    model, encoder = load_prompted(tmp_path / "out/5-fine-tuned/model")
    assert len(predict(model, encoder, ROWS)) == len(ROWS)
    corpus = (tmp_path / "out/3-corpus/train.txt").read_text()
    assert "It was" in corpus and "prompt" not in corpus


def test_what_cannot_be_is_refused(base, tmp_path):
    with pytest.raises(MultituneError, match="no unlabelled texts"):
        run(base, tmp_path / "out", data=replace(DATA, unlabelled=[]))
    with pytest.raises(MultituneError, match="No prompt lies beside"):
        load_prompted(tmp_path / "base")
    tokenizer = byte_level_tokenizer()
    bare = small_bert(tokenizer)
    BertModel(bare.config).save_pretrained(tmp_path / "headless")
    tokenizer.save_pretrained(tmp_path / "headless")
    with pytest.raises(MultituneError, match="lack weights of its language-model head"):
        run(ModelConfig(name=str(tmp_path / "headless")), tmp_path / "other")
