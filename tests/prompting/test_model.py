"""Class logits are the model's own; soft tokens begin as copies; values are told by two words."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

from multitune.prompting.encoding import encoder_of
from multitune.prompting.learning import padded
from multitune.prompting.model import (
    PromptForMaskedLM,
    TokenLoss,
    logits_at,
    predicted_values,
    value_loss,
    value_target,
)
from multitune.prompting.shipped import shipped_prompt
from multitune.prompting.soft import add_soft_tokens
from tests.prompting.small_models import byte_level_tokenizer, small_bert, small_roberta, word_tokenizer
from tests.small_llama import small_llama

ROWS = [{"a": "the film moved me"}, {"a": "the play bored us , but the song was long"}]


def prompted(model_of, tokenizer, **how):
    encoder = encoder_of(tokenizer, *shipped_prompt("sst-2"), **how)
    model = model_of(tokenizer)
    return model, encoder, padded(encoder.encode(ROWS, 60), tokenizer, torch.device("cpu"))


@pytest.mark.parametrize("model_of", [small_roberta, small_bert])
@pytest.mark.parametrize("make", [byte_level_tokenizer, word_tokenizer])
def test_class_logits_are_the_models_at_the_mask(model_of, make):
    model, encoder, batch = prompted(model_of, make())
    with torch.no_grad():
        whole = model(**batch).logits
        got = PromptForMaskedLM.of(model, encoder)(**batch).logits
        again = model(**batch).logits
    place = (batch["input_ids"] == encoder.mask_id).int().argmax(1)
    expected = whole[torch.arange(2), place][:, list(encoder.label_ids)]
    torch.testing.assert_close(got, expected)
    assert torch.equal(whole, again)  # the model is left as it was


def test_only_the_chosen_logits_are_computed():
    model, encoder, batch = prompted(small_roberta, byte_level_tokenizer())
    classifier = PromptForMaskedLM.of(model, encoder)
    classifier(**batch)  # the look at the architecture is over
    shapes = []
    plain = torch.nn.functional.linear

    def observed(*arguments):
        out = plain(*arguments)
        shapes.append(tuple(out.shape))
        return out

    torch.nn.functional.linear = observed
    try:
        classifier(**batch)
    finally:
        torch.nn.functional.linear = plain
    assert shapes[-1] == (2, 2) and len(encoder.tokenizer) not in {shape[-1] for shape in shapes}


def test_a_head_with_something_behind_it_gives_the_same_logits():
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 3 * super().forward(hidden)

    model, encoder, batch = prompted(small_bert, word_tokenizer())
    own = model.get_output_embeddings()
    scaled = Scaled(own.in_features, own.out_features)
    scaled.load_state_dict(own.state_dict())
    model.set_output_embeddings(scaled)
    with torch.no_grad():
        whole = model(**batch).logits
        got = PromptForMaskedLM.of(model, encoder)(**batch).logits
    place = (batch["input_ids"] == encoder.mask_id).int().argmax(1)
    torch.testing.assert_close(got, whole[torch.arange(2), place][:, list(encoder.label_ids)])


def test_distilbert_is_read_the_same_way():
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=32, pad_token_id=0)
    model = DistilBertForMaskedLM(config).eval()
    encoder = encoder_of(tokenizer, *shipped_prompt("sst-2"))
    batch = padded(encoder.encode(ROWS, 60), tokenizer, torch.device("cpu"))
    row, place = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 4])
    with torch.no_grad():
        torch.testing.assert_close(logits_at(model, batch, row, place), model(**batch).logits[row, place])


def test_a_constant_on_all_logits_leaves_the_loss():
    model, encoder, batch = prompted(small_roberta, byte_level_tokenizer())
    classifier = PromptForMaskedLM.of(model, encoder)
    labels = torch.tensor([0, 1])
    before = classifier(**batch, labels=labels).loss
    with torch.no_grad():
        model.get_output_embeddings().bias.add_(2.5)
    torch.testing.assert_close(classifier(**batch, labels=labels).loss, before)


def test_gradients_are_those_of_the_whole_logits():
    model, encoder, batch = prompted(small_roberta, byte_level_tokenizer())
    labels = torch.tensor([0, 1])
    PromptForMaskedLM.of(model, encoder)(**batch, labels=labels).loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    place = (batch["input_ids"] == encoder.mask_id).int().argmax(1)
    logits = model(**batch).logits[torch.arange(2), place][:, list(encoder.label_ids)]
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, msg=name)


def test_a_row_without_one_mask_is_refused():
    model, encoder, batch = prompted(small_roberta, byte_level_tokenizer())
    batch["input_ids"][0, 0] = encoder.mask_id
    with pytest.raises(ValueError, match="exactly one mask"):
        PromptForMaskedLM.of(model, encoder)(**batch)


def test_a_causal_model_answers_behind_the_last_token():
    tokenizer = byte_level_tokenizer()
    encoder = encoder_of(tokenizer, *shipped_prompt("sst-2"), causal=True)
    model = small_llama(len(tokenizer)).eval()
    batch = padded(encoder.encode(ROWS, 60), tokenizer, torch.device("cpu"))
    with torch.no_grad():
        got = PromptForMaskedLM.of(model, encoder)(**batch).logits
        alone = [model(torch.tensor([ids])).logits[0, -1, list(encoder.label_ids)] for ids in encoder.encode(ROWS, 60)]
    torch.testing.assert_close(got, torch.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_of", [small_roberta, small_bert])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 9])
def test_soft_tokens_begin_as_copies_and_come_back_after_saving(model_of, tied, spare, tmp_path):
    tokenizer = byte_level_tokenizer()
    hard = encoder_of(tokenizer, *shipped_prompt("sst-2", soft=True))
    model = model_of(tokenizer, tie_word_embeddings=tied, vocab_size=len(tokenizer) + spare)
    length = len(tokenizer)
    expected = PromptForMaskedLM.of(model, hard)(**padded(hard.encode(ROWS, 60), tokenizer, torch.device("cpu"))).logits
    new = add_soft_tokens(model, tokenizer, hard.template, hard.verbalizer)
    assert new == tuple(range(length, length + 4))  # It, was, terrible, great
    soft = encoder_of(tokenizer, hard.template, hard.verbalizer, soft=True)
    ids = soft.encode(ROWS, 60)
    assert all(set(new[:2]) <= set(row) for row in ids) and soft.label_ids == new[2:]
    batch = padded(ids, tokenizer, torch.device("cpu"))
    torch.testing.assert_close(PromptForMaskedLM.of(model, soft)(**batch).logits, expected)

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    read = encoder_of(AutoTokenizer.from_pretrained(tmp_path), hard.template, hard.verbalizer, soft=True)
    assert read.encode(ROWS, 60) == ids
    torch.testing.assert_close(PromptForMaskedLM.of(loaded, read)(**batch).logits, expected)


def test_a_value_is_told_by_two_words():
    bounds = (0.0, 5.0)
    target = value_target(torch.tensor([0.0, 2.5, 5.0]), bounds)
    assert target.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.5, 0.5]]))
    values = predicted_values(logits, bounds)
    torch.testing.assert_close(values, torch.tensor([1.0, 2.5]))
    assert float(value_loss(logits, values, bounds)) == pytest.approx(0, abs=1e-6)
    assert float(value_loss(logits[:1], torch.tensor([5.0]), bounds)) == pytest.approx(math.log(5))
    extreme = predicted_values(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), bounds)
    assert extreme.tolist() == [0.0, 5.0]


def test_the_official_loss_is_another_one():
    logits, value, bounds = torch.log(torch.tensor([[0.5, 0.5]])), torch.tensor([2.5]), (0.0, 5.0)
    # mean over two words of exp(t) (t - log p) with t = 0.5
    expected = math.exp(0.5) * (0.5 - math.log(0.5))
    assert float(value_loss(logits, value, bounds, official=True)) == pytest.approx(expected)
    assert float(value_loss(logits, value, bounds)) == pytest.approx(0, abs=1e-7)


def test_the_token_loss_is_the_models_own():
    tokenizer = word_tokenizer()
    model = small_bert(tokenizer)
    batch = padded([[1, 6, 4, 8, 2], [1, 4, 2]], tokenizer, torch.device("cpu"))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 2], labels[1, 1] = 7, 9
    torch.testing.assert_close(TokenLoss(model)(**batch, labels=labels).loss, model(**batch, labels=labels).loss)
