from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from multitune.models.hidden import head_logits, hidden_route, hidden_states, shift_right

CAUSAL = ["llama", "qwen2", "gpt2", "opt", "bloom", "cohere", "granite", "gemma2", "mpt"]
ENCODER_DECODER = ["t5", "mt5", "umt5", "longt5", "bart"]


def causal_batch() -> dict[str, Tensor]:
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0], [15, 16, 17, 0, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 1, 2]]),
        "example_ids": torch.tensor([[0, 0, 0, 0, 0, -1], [1, 1, 1, -1, -1, -1]]),
    }


def encoder_decoder_batch() -> dict[str, Tensor]:
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8], [15, 16, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[21, 22, 2], [31, 2, -100]]),
    }


@pytest.mark.parametrize("family", CAUSAL)
def test_head_after_decoder_is_the_models_own_forward(family: str, make_model: Callable[..., Any]) -> None:
    model, batch = make_model(family), causal_batch()
    assert hidden_route(model) == "decoder"
    logits = head_logits(model, hidden_states(model, batch))
    for row, length in enumerate([5, 3]):
        expected = model(input_ids=batch["input_ids"][row : row + 1, :length]).logits[0]
        torch.testing.assert_close(logits[row, :length], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ENCODER_DECODER)
def test_encoder_decoder_models_predict_their_labels(family: str, make_model: Callable[..., Any]) -> None:
    model, batch = make_model(family), encoder_decoder_batch()
    if family == "bart":
        model.final_logits_bias.copy_(torch.linspace(-1, 1, 97)[None])
    assert hidden_route(model) == "decoder"
    logits = head_logits(model, hidden_states(model, batch))
    expected = model(**batch).logits
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1, :2], expected[1, :2], atol=1e-5, rtol=1e-5)


def test_logits_at_chosen_positions_are_rows_of_all_logits(make_model: Callable[..., Any]) -> None:
    model = make_model("gemma2")
    states = hidden_states(model, causal_batch())
    chosen = head_logits(model, states[causal_batch()["example_ids"] >= 0])
    assert chosen.shape == (8, 97)
    torch.testing.assert_close(chosen[:5], head_logits(model, states)[0, :5], atol=1e-5, rtol=1e-5)
    assert chosen.abs().max() <= 0.5  # the soft cap


def test_an_architecture_whose_head_is_unknown_falls_back_to_its_own_logits(
    make_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama")
    own_forward = model.forward

    def forward_with_a_twist(*arguments: Any, **named: Any) -> Any:
        output = own_forward(*arguments, **named)
        output.logits = output.logits.sin()
        return output

    model.forward = forward_with_a_twist
    assert hidden_route(model) == "full"
    assert "is not known here" in caplog.text
    logits = head_logits(model, hidden_states(model, causal_batch()))
    expected = model(input_ids=causal_batch()["input_ids"][:1, :5]).logits[0]
    torch.testing.assert_close(logits[0, :5], expected, atol=1e-5, rtol=1e-5)


def test_shift_right_by_hand(make_model: Callable[..., Any]) -> None:
    config = make_model("bart").config  # starts with 2, pads with 0
    assert shift_right(torch.tensor([[21, 22, -100, -100]]), config).tolist() == [[2, 21, 22, 0]]


def test_shift_right_is_the_models_own(make_model: Callable[..., Any]) -> None:
    labels = encoder_decoder_batch()["labels"]
    for family in ENCODER_DECODER:
        model = make_model(family)
        own = model.prepare_decoder_input_ids_from_labels(labels)
        assert torch.equal(shift_right(labels, model.config), own), family


def test_finding_the_route_leaves_training_mode_and_random_state_alone(make_model: Callable[..., Any]) -> None:
    model = make_model("gpt2").train()
    before = torch.get_rng_state()
    hidden_route(model)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
