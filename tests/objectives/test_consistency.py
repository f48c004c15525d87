"""The divergence between two passes, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from multitune.objectives import consistency
from multitune.objectives.consistency import symmetric_divergence, token_divergence


def test_worked_by_hand():
    first, second = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = (0.25 * math.log(2) + 0.25 * math.log(1.5)) / 2  # (p - q)(log p - log q) summed, halved
    torch.testing.assert_close(symmetric_divergence(first, second), torch.tensor([expected]))
    torch.testing.assert_close(symmetric_divergence(second, first), torch.tensor([expected]))
    assert symmetric_divergence(first, first).item() == 0


def test_places_that_a_row_has_not_take_no_part():
    first, second = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    absent = torch.full((1, 1), float("-inf"))
    wide = [torch.cat([row, absent], dim=1).requires_grad_() for row in (first, second)]
    torch.testing.assert_close(symmetric_divergence(*wide), symmetric_divergence(first, second))
    symmetric_divergence(*wide).sum().backward()
    assert all(torch.isfinite(row.grad).all() for row in wide)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_chunks_change_nothing(rows, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(4, 6, generator=draw, requires_grad=True)
    first, second = (torch.randn(5, 4, generator=draw) for _ in range(2))
    whole = symmetric_divergence(first @ head, second @ head)
    (expected,) = torch.autograd.grad(whole.sum(), head)
    monkeypatch.setattr(consistency, "CHUNK_ELEMENTS", 12 * rows)
    found = token_divergence(first, second, lambda states: states @ head, 6)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), head)[0], expected)
