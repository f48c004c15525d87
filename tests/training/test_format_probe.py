"""Gradients of true against permuted labels: where both are the same, and where they are not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from multitune.tasks.task import Example, Prompted
from multitune.training.format_probe import format_alignment, permutation, with_permuted_targets

ROWS = 32


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 3)


def alignment(layer, labels, order):
    inputs = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))

    def loss(targets):
        return F.cross_entropy(layer(inputs), targets)

    return format_alignment(loss, labels, labels[torch.tensor(order)], list(layer.parameters()))


def test_the_identity_and_a_single_class_align_exactly(layer):
    """Invariant 6: without a permutation, and where all labels are alike, both gradients are one."""
    labels = torch.randint(3, (ROWS,), generator=torch.Generator().manual_seed(2))
    assert alignment(layer, labels, list(range(ROWS))) == pytest.approx(1.0, abs=1e-12)
    for seed in range(3):
        order = permutation(ROWS, seed)
        assert alignment(layer, torch.full((ROWS,), 2), order) == pytest.approx(1.0, abs=1e-12)
        assert alignment(layer, labels, order) < 0.99


def test_what_depends_on_the_input_is_not_format(layer):
    """With labels that say what stands in the input, a bias alone learns the format and the weight the content."""
    inputs = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))
    labels = (inputs[:, 0] > 0).long()
    with torch.no_grad():
        layer.bias[2] = -20.0  # the format is known already: the third answer never comes
        layer.weight[2] = 0.0
    assert alignment(layer, labels, permutation(ROWS, 0)) < 0.9


def rows():
    return [
        Prompted(
            example=Example(f"row:{i}", f"row {i}", {"text": str(i)}),
            template=0,
            prompt=f"say {i}",
            messages=(),
            target=f"answer {i}",
            choices=("a", "b"),
            label=i % 2,
            value=float(i),
        )
        for i in range(5)
    ]


def test_rows_keep_their_inputs_and_take_the_targets_of_others():
    order = permutation(5, seed=3)
    assert order == permutation(5, seed=3) != list(range(5))
    permuted = with_permuted_targets(rows(), order)
    assert [row.prompt for row in permuted] == [row.prompt for row in rows()]
    assert [row.target for row in permuted] == [f"answer {place}" for place in order]
    assert [row.label for row in permuted] == [place % 2 for place in order]
    assert with_permuted_targets(rows(), range(5)) == rows()
    with pytest.raises(ValueError, match="no order of 5 rows"):
        with_permuted_targets(rows(), [0, 0, 1, 2, 3])
