"""Trainings of prompts and of the language model itself: masks, zero steps, going on after a stop."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from multitune.errors import MultituneError
from multitune.prompting.config import FineTuning, Pretraining
from multitune.prompting.encoding import encoder_of
from multitune.prompting.learning import (
    Masker,
    agreement,
    continue_pretraining,
    encode_lines,
    fine_tune,
    predict,
    targets_of,
)
from multitune.prompting.row_trainer import KeepBest, MicroBatches, RowTrainer
from multitune.prompting.shipped import shipped_prompt
from multitune.prompting.template import parse_template
from multitune.prompting.verbalizer import classes
from multitune.training.interrupts import Interrupted
from tests.prompting.small_models import byte_level_tokenizer, small_bert, small_roberta, word_tokenizer
from tests.small_llama import small_llama

CPU = torch.device("cpu")
TEXTS = [{"a": text} for text in ("the film moved me", "the play bored us", "the song was short", "the book was long")]
LABELS = [1.0, 0.0, 1.0, 0.0]
SHORT = {"steps": 6, "batch_size": 2, "learning_rates": (1e-3,), "evaluate_every": 2}


def test_tokens_are_masked_as_often_as_said_and_special_ones_never():
    tokenizer = word_tokenizer()
    masker = Masker(tokenizer, Pretraining(), causal=False, device=CPU)
    ids = encode_lines(tokenizer, ["the film moved me and the play bored us", "It was great ."], 40)
    chosen, seen, became = torch.zeros(2, 11), 0, {"mask": 0, "same": 0}
    for epoch in range(3000):
        batch = masker(ids, epoch)
        picked = batch["labels"] != -100
        originals = torch.tensor([row + [tokenizer.pad_token_id] * (11 - len(row)) for row in ids])
        assert torch.equal(batch["labels"][picked], originals[picked])
        assert torch.equal(batch["input_ids"][~picked], originals[~picked])
        chosen += picked
        seen += int(picked.sum())
        became["mask"] += int((batch["input_ids"][picked] == tokenizer.mask_token_id).sum())
        became["same"] += int((batch["input_ids"][picked] == originals[picked]).sum())
    share = chosen / 3000
    ordinary = torch.zeros(2, 11, dtype=torch.bool)
    ordinary[0, 1:10], ordinary[1, 1:5] = True, True
    assert float(share[~ordinary].max()) == 0  # [CLS], [SEP], padding
    assert float((share[ordinary] - 0.15).abs().max()) < 4 * (0.15 * 0.85 / 3000) ** 0.5
    assert became["mask"] / seen == pytest.approx(0.8, abs=0.02) and became["same"] / seen == pytest.approx(
        0.1, abs=0.02
    )


def test_masks_depend_on_the_seed_alone_and_the_label_may_always_be_masked():
    tokenizer = word_tokenizer()
    masker = Masker(tokenizer, Pretraining(always_mask_label=True), causal=False, device=CPU)
    ids = encode_lines(tokenizer, ["Human : the film", "Number : the song was long"], 40)
    one, same, other = masker(ids, 1), masker(ids, 1), masker(ids, 2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["input_ids"], other["input_ids"])
    for batch in (one, other):
        assert batch["input_ids"][:, 1].tolist() == [tokenizer.mask_token_id] * 2
        assert batch["labels"][:, 1].tolist() == [row[1] for row in ids]


def test_a_causal_model_predicts_the_next_token():
    tokenizer = word_tokenizer()
    ids = encode_lines(tokenizer, ["the film moved", "me"], 40)
    batch = Masker(tokenizer, Pretraining(), causal=True, device=CPU)(ids, 0)
    assert batch["labels"].tolist() == [[*ids[0][1:], -100], [*ids[1][1:], -100, -100, -100]]


def test_every_epoch_has_every_row_once_in_an_order_of_its_own():
    batches = MicroBatches(5, 2, 10, lambda rows, seed: {"rows": torch.tensor(rows)}, seed=3)
    drawn = torch.cat([batches[place]["rows"] for place in range(10)]).reshape(4, 5).tolist()
    assert all(sorted(epoch) == list(range(5)) for epoch in drawn) and len({tuple(epoch) for epoch in drawn}) > 1


def opened(model_of=small_roberta):
    tokenizer = byte_level_tokenizer()
    return model_of(tokenizer), encoder_of(tokenizer, *shipped_prompt("sst-2"))


def test_zero_steps_of_pretraining_leave_plain_fine_tuning_to_the_last_bit(tmp_path):
    weights = []
    for name in ("plain", "pcp"):
        model, encoder = opened()
        if name == "pcp":
            config = Pretraining(steps=0)
            continue_pretraining(model, encoder.tokenizer, ["a b It was great ."], config, tmp_path / "mlm", seed=0)
        fine_tune(model, encoder, (TEXTS, LABELS), (TEXTS, LABELS), FineTuning(**SHORT), tmp_path / name, seed=1)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_fine_tuning_learns_and_the_best_look_stays(tmp_path):
    model, encoder = opened()
    config = FineTuning(**{**SHORT, "steps": 80, "batch_size": 4, "evaluate_every": 10, "learning_rates": (1e-6, 1e-2)})
    trained = fine_tune(model, encoder, (TEXTS, LABELS), (TEXTS, LABELS), config, tmp_path, seed=0)
    assert trained.best == 1.0 == agreement(predict(model, encoder, TEXTS), LABELS, encoder)
    with pytest.raises(MultituneError, match="no development rows"):
        fine_tune(model, encoder, (TEXTS, LABELS), None, config, tmp_path / "none", seed=0)


@pytest.mark.parametrize("kind", ["fine-tuning", "pretraining"])
def test_a_stopped_training_goes_on_to_the_same_weights(kind, tmp_path, monkeypatch):
    def run(folder):
        model, encoder = opened()
        if kind == "fine-tuning":
            config = FineTuning(**SHORT, save_every=3)
            told = fine_tune(model, encoder, (TEXTS, LABELS), (TEXTS, LABELS), config, folder, seed=1)
        else:
            config = Pretraining(steps=6, batch_size=2, accumulation=2, evaluate_every=2, save_every=3)
            lines = ["the film moved me", "the play bored us It was terrible .", "It was great ."]
            told = continue_pretraining(model, encoder.tokenizer, lines, config, folder, seed=1, development=lines[:2])
        return told, copy.deepcopy(model.state_dict())

    expected = run(tmp_path / "whole")
    saved = RowTrainer._save_checkpoint

    def save_and_stop(self, model, trial):
        saved(self, model, trial)
        raise Interrupted(self.state.global_step)

    with monkeypatch.context() as patched:
        patched.setattr(RowTrainer, "_save_checkpoint", save_and_stop)
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped")
    told, weights = run(tmp_path / "stopped")
    assert told == expected[0]
    assert all(torch.equal(weights[name], expected[1][name]) for name in weights)


def test_pretraining_lowers_the_loss_and_takes_causal_models(tmp_path):
    tokenizer = byte_level_tokenizer()
    lines = ["the film moved me . It was great .", "the play bored us . It was terrible ."]
    config = Pretraining(steps=25, batch_size=2, accumulation=1, learning_rate=1e-2, evaluate_every=5)
    for causal, model in ((False, small_roberta(tokenizer)), (True, small_llama(len(tokenizer)))):
        folder = tmp_path / str(causal)
        continue_pretraining(model, tokenizer, lines, config, folder, seed=0, development=lines, causal=causal)
        looks = json.loads((folder / "looks.json").read_text())
        assert looks[-1][1] < looks[0][1]


def test_an_empty_corpus_and_a_tokenizer_without_mask_are_refused(tmp_path):
    model, encoder = opened()
    with pytest.raises(MultituneError, match="The corpus is empty"):
        continue_pretraining(model, encoder.tokenizer, [" "], Pretraining(), tmp_path, seed=0)
    bare = byte_level_tokenizer()
    bare.mask_token = None
    with pytest.raises(MultituneError, match="nothing can be masked"):
        continue_pretraining(model, bare, ["a"], Pretraining(), tmp_path, seed=0)


def test_values_are_learned_from_two_words(tmp_path):
    tokenizer = byte_level_tokenizer()
    encoder = encoder_of(tokenizer, *shipped_prompt("sts-b"))
    rows = [{"a": "the film", "b": "the film"}, {"a": "the film", "b": "bored us"}, {"a": "a b", "b": "a b long"}]
    values = targets_of(encoder, [5, "0", 2.5])
    assert values == [5.0, 0.0, 2.5]
    model = small_roberta(tokenizer)
    config = FineTuning(steps=40, batch_size=3, learning_rates=(5e-3,), evaluate_every=10)
    told = fine_tune(model, encoder, (rows, values), (rows, values), config, tmp_path, seed=0)
    assert told.best > 0.9 and all(0 <= value <= 5 for value in predict(model, encoder, rows))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks
def test_soft_tokens_alone_can_train_through_peft(tmp_path):
    from peft import TrainableTokensConfig, get_peft_model

    from multitune.prompting.soft import add_soft_tokens

    tokenizer = word_tokenizer()
    template, verbalizer = parse_template("{a} It was <mask>"), classes({"0": "terrible", "1": "great"})
    model = small_bert(tokenizer)
    new = add_soft_tokens(model, tokenizer, template, verbalizer)
    adapted = get_peft_model(model, TrainableTokensConfig(token_indices=list(new)))
    encoder = encoder_of(tokenizer, template, verbalizer, soft=True)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    fine_tune(adapted, encoder, (TEXTS, LABELS), None, FineTuning(**SHORT), tmp_path, seed=0)
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("trainable_tokens" in name for name in changed)


def test_the_best_of_equals_is_the_first(tmp_path):
    keeper = KeepBest.__new__(KeepBest)
    keeper.seen = [(2, 0.5), (4, 0.75), (6, 0.75)]
    keeper.look = type("Look", (), {"larger_is_better": True})
    assert keeper.best == (4, 0.75)
    keeper.look = type("Look", (), {"larger_is_better": False})
    assert keeper.best == (2, 0.5)
