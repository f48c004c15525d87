"""Token losses: shift, masked positions, chunks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from multitune.objectives import token_loss
from multitune.objectives.token_loss import next_token_positions, token_nll


def test_the_position_before_a_labelled_token_predicts_it():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100]])
    mask, targets = next_token_positions(labels)
    assert mask.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert targets.tolist() == [5, 6, 7]


def make(n=37, width=8, vocabulary=50):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(0, vocabulary, (n,), generator=generator)


def test_chunks_give_the_value_and_gradient_of_one_piece(monkeypatch):
    hidden, weight, labels = make()
    whole = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected = torch.autograd.grad(whole.square().sum(), (hidden, weight))
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 50 * 5)  # five rows a chunk
    chunked = token_nll(hidden, labels, lambda h: h @ weight.T, 50)
    assert torch.allclose(whole, chunked, atol=1e-6)
    for a, b in zip(expected, torch.autograd.grad(chunked.square().sum(), (hidden, weight)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_masked_positions_have_exactly_zero_gradient():
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(2, 6, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator)
    labels = torch.tensor([[-100, -100, 3, 4, -100, -100], [-100, 9, -100, -100, -100, -100]])
    mask, targets = next_token_positions(labels)
    token_nll(hidden[mask], targets, lambda h: h @ weight.T, 50).sum().backward()
    assert hidden.grad is not None
    assert torch.all(hidden.grad[~mask] == 0)
    assert torch.all(hidden.grad[mask].abs().sum(-1) > 0)
