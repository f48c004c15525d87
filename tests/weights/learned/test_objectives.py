"""Losses by hand: entropy, its reliable part, contrast, unsupervised FixMatch, the penalty."""

from __future__ import annotations

import math

import pytest
import torch

from multitune.errors import MultituneError
from multitune.weights.learned.objectives import (
    UNTRUSTED,
    cross_entropy,
    entropy,
    regulariser,
    reliable_entropy,
    simclr,
    trusted_rows,
    ufm,
)

P = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.99, 0.01]], dtype=torch.float64)
ENTROPIES = [0.6931472, 0.3250830, 0.0560015]


def test_entropy_is_the_mean_and_its_reliable_part_leaves_out_the_unsure():
    assert float(entropy(P.log())) == pytest.approx(sum(ENTROPIES) / 3, abs=1e-7)
    assert float(reliable_entropy(P.log())) == pytest.approx(ENTROPIES[2], abs=1e-7)  # 0.4 ln 2 = 0.277
    assert float(reliable_entropy(P.log(), margin=0.5)) == pytest.approx(sum(ENTROPIES[1:]) / 2, abs=1e-7)
    unsure = P[:1].log().requires_grad_()
    loss = reliable_entropy(unsure)
    loss.backward()
    assert loss.item() == 0
    assert unsure.grad.eq(0).all()


def test_cross_entropy_of_a_worked_row():
    assert float(cross_entropy(P[1:2].log(), torch.tensor([1]))) == pytest.approx(-math.log(0.1))


def test_contrast_of_two_rows_by_hand():
    """Rows e1 and e2, both views alike: every embedding sees its partner at 1, the two others at 0."""
    views = torch.eye(2, dtype=torch.float64)
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(simclr(views, 3 * views)) == pytest.approx(expected, abs=1e-12)  # lengths do not matter
    assert float(simclr(views, views.flip(0))) > expected
    with pytest.raises(MultituneError, match="1 row cannot be contrasted"):
        simclr(views[:1], views[:1])


def test_trusted_rows_are_the_surest_of_every_class():
    probability_BL = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    rows, labels = trusted_rows(probability_BL, most=1)
    assert (rows.tolist(), labels.tolist()) == ([0, 3], [0, 1])
    rows, labels = trusted_rows(probability_BL)  # 5 // 2 = 2 per class; row 4 is class 1's second by 0.45
    assert (rows.tolist(), labels.tolist()) == ([0, 1, 3, 4], [0, 0, 1, 1])
    rows, labels = trusted_rows(torch.tensor([[0.9, 0.1], [0.8, 0.2]]))  # row 0 for class 0; row 1 is class 1's best
    assert (rows.tolist(), labels.tolist()) == ([0, 1], [0, 1])
    rows, labels = trusted_rows(torch.tensor([[0.9, 0.1], [0.2, 0.05]]))  # row 0 is both classes' best: the surer one's
    assert (rows.tolist(), labels.tolist()) == ([0], [0])


def test_unsupervised_fixmatch_by_hand():
    weak = torch.tensor([[0.99, 0.01], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64)
    strong = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.25, 0.75]], dtype=torch.float64)
    trusted = torch.tensor([UNTRUSTED, UNTRUSTED, 0])
    flat = (0.99**0.5 / (0.99**0.5 + 0.1), 0.1 / (0.99**0.5 + 0.1))  # sigma with exponent 0.5: 0.9087 and 0.0913
    pseudo = -(flat[0] * math.log(0.7) + flat[1] * math.log(0.3))
    labelled = -math.log(0.25)
    loss = float(ufm(weak.log(), strong.log(), trusted, threshold=0.9))
    assert loss == pytest.approx((pseudo + 0 + labelled) / 3, abs=1e-12)
    assert float(ufm(weak.log(), strong.log(), trusted, threshold=0.91)) == pytest.approx(labelled / 3, abs=1e-12)
    sharp = 0.6**2 / (0.6**2 + 0.4**2)  # exponent 2 sharpens 0.6 to 0.6923
    second = -(sharp * math.log(0.2) + (1 - sharp) * math.log(0.8))
    assert float(ufm(weak[1:2].log(), strong[1:2].log(), trusted[1:2], threshold=0.69, exponent=2.0)) == pytest.approx(
        second, abs=1e-12
    )


def test_no_gradient_reaches_the_weak_view():
    weak, strong = (torch.tensor([[3.0, 0.0]], requires_grad=True) for _ in range(2))
    ufm(weak, strong, torch.tensor([UNTRUSTED]), threshold=0.5).backward()
    assert weak.grad is None
    assert strong.grad.abs().sum() > 0


@pytest.mark.parametrize(("p", "expected"), [(1, 0.5 * (7 + 2) / 2), (2, 0.5 * (5 + 2) / 2)])
def test_the_penalty_is_half_the_mean_norm_across_vectors(p, expected):
    lam_NC = torch.tensor([[3.0, 0.0], [-4.0, 2.0]])
    assert float(regulariser(lam_NC, p)) == pytest.approx(expected)
    zero = torch.zeros(2, 2, requires_grad=True)
    regulariser(zero, p).backward()
    assert zero.grad.eq(0).all()
