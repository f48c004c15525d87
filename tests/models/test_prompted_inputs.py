"""Prompts before the text: what a model reads, under both paddings, and what it answers for the text."""

from __future__ import annotations

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from multitune.models.prompted_inputs import mask_with_prompt, padding_in_front, with_prompt, without_prompt

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

PROMPT = torch.tensor([[10.0, 11.0], [20.0, 21.0]])
TEXT = torch.tensor([[[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]], [[4.0, 4.5], [5.0, 5.5], [6.0, 6.5]]])


def test_without_padding_the_prompt_comes_first():
    found = with_prompt(PROMPT, TEXT, position_ids=torch.arange(3)[None], labels=torch.tensor([[7, 8, 9], [1, 2, 3]]))
    assert torch.equal(found.inputs_embeds[:, :2], PROMPT.expand(2, 2, 2))
    assert torch.equal(found.inputs_embeds[:, 2:], TEXT)
    assert found.attention_mask is None
    assert found.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert found.labels.tolist() == [[-100, -100, 7, 8, 9], [-100, -100, 1, 2, 3]]


def test_on_the_left_the_padding_stays_before_the_prompt():
    mask = torch.tensor([[0, 0, 1], [1, 1, 0]])
    positions = torch.tensor([[0, 0, 0], [0, 1, 1]])
    found = with_prompt(PROMPT, TEXT, mask, positions, torch.tensor([[-100, -100, 9], [1, 2, -100]]))
    assert found.attention_mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert found.inputs_embeds[0, :, 0].tolist() == [1.0, 2.0, 10.0, 20.0, 3.0]
    assert found.inputs_embeds[1, :, 0].tolist() == [10.0, 20.0, 4.0, 5.0, 6.0]
    assert found.position_ids.tolist() == [[2, 2, 0, 1, 2], [0, 1, 2, 3, 3]]
    assert found.labels.tolist() == [[-100, -100, -100, -100, 9], [-100, -100, 1, 2, -100]]
    assert torch.equal(mask_with_prompt(mask, 2), found.attention_mask)
    assert padding_in_front(mask).tolist() == [2, 0]
    assert padding_in_front(torch.tensor([[1, 0]])) is None


def test_every_row_may_have_a_prompt_of_its_own():
    own = torch.stack([PROMPT, -PROMPT])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = with_prompt(own, TEXT, mask).inputs_embeds
    assert found[:, :, 0].tolist() == [[1.0, 10.0, 20.0, 2.0, 3.0], [-10.0, -20.0, 4.0, 5.0, 6.0]]


@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 1, 1], [1, 1, 1]])])
def test_gradients_reach_prompt_and_text_and_nothing_given_changes(mask):
    prompt, text = PROMPT.clone().requires_grad_(), TEXT.clone().requires_grad_()
    found = with_prompt(prompt, text, mask).inputs_embeds
    (found * 2).sum().backward()
    assert torch.equal(prompt.grad, torch.full_like(prompt, 4.0))
    assert torch.equal(text.grad, torch.full_like(text, 2.0))
    assert torch.equal(prompt, PROMPT)
    assert torch.equal(text, TEXT)


def test_the_prompt_takes_the_type_of_the_embeddings():
    assert with_prompt(PROMPT, TEXT.to(torch.bfloat16)).inputs_embeds.dtype == torch.bfloat16


def test_what_is_left_of_logits_is_the_texts():
    logits = torch.arange(5.0)[None, :, None]
    assert without_prompt(logits, 3).flatten().tolist() == [2.0, 3.0, 4.0]
    assert without_prompt(logits[:, -1:], 3).flatten().tolist() == [4.0]


@pytest.mark.parametrize(
    ("prompt", "mask", "message"),
    [
        (torch.zeros(3, 2, 2), None, "3 prompts cannot stand before 2 rows"),
        (PROMPT, torch.ones(2, 1, 3, 3), "mask of shape"),
        (PROMPT, torch.ones(2, 5), "mask of shape"),
    ],
)
def test_what_does_not_fit_is_refused(prompt, mask, message):
    with pytest.raises(ValueError, match=message):
        with_prompt(prompt, TEXT, mask)


def test_a_decoder_computes_what_pefts_prompt_tuning_does(make_model):
    model = make_model("llama")
    peft = get_peft_model(make_model("llama"), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")).eval()
    prompt = peft.prompt_encoder["default"].embedding.weight.detach()
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = ids.masked_fill(mask == 0, -100)
    found = with_prompt(prompt, model.get_input_embeddings()(ids), mask, labels=labels)
    with torch.no_grad():
        output = model(inputs_embeds=found.inputs_embeds, attention_mask=found.attention_mask, labels=found.labels)
        expected = peft(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)
    assert without_prompt(output.logits, 4).shape == (2, 4, 97)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "mpt", "t5", "bart"])
def test_a_row_is_answered_alike_whatever_its_padding(make_model, family):
    model = make_model(family)
    generator = torch.Generator().manual_seed(0)
    tokens, length = torch.tensor([[5, 6, 7]]), 2
    embed = model.get_input_embeddings()
    prompt = torch.randn(length, embed.weight.shape[1], generator=generator)

    def answers(ids, mask):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = with_prompt(prompt, embed(ids), mask, positions)
        inputs = {"inputs_embeds": found.inputs_embeds, "attention_mask": found.attention_mask}
        if family in ("t5", "bart"):
            inputs["decoder_input_ids"] = torch.tensor([[0, 9, 8]])
        elif family not in ("bloom", "mpt"):
            inputs["position_ids"] = found.position_ids
        with torch.no_grad():
            logits = without_prompt(model(**inputs).logits, ids.shape[1])
        return logits if family in ("t5", "bart") else logits[mask.bool()][None]

    alone = answers(tokens, torch.ones(1, 3, dtype=torch.long))
    pad = torch.zeros(1, 2, dtype=torch.long)
    right = answers(torch.cat([tokens, pad], 1), torch.tensor([[1, 1, 1, 0, 0]]))
    left = answers(torch.cat([pad, tokens], 1), torch.tensor([[0, 0, 1, 1, 1]]))
    torch.testing.assert_close(right, alone, atol=1e-4, rtol=1e-4)
    if family != "bart":  # the positions of an encoder of BART are learned, and count padding in front
        torch.testing.assert_close(left, alone, atol=1e-4, rtol=1e-4)
