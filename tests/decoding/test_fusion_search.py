"""The kernel of logit fusion: the card's invariants 1 to 6 and its hand case, to the stated digits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from multitune.decoding.fusion_config import FusionConfig, check_fusion
from multitune.decoding.fusion_powers import CHUNK_ELEMENTS, along_each, joint
from multitune.decoding.fusion_search import (
    _centred,
    candidates,
    divergences,
    fuse,
    grid_points,
    losses,
)
from multitune.errors import MultituneError

GRID = FusionConfig()


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def three(rows: int = 6, experts: int = 1, words: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return a large model, a small base, and experts that moved away from it."""
    small = logits(rows, words, seed=1)
    return logits(rows, words), small, small[:, None] + logits(rows, experts, words, seed=2, scale=1.0)


def direct_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p||q) of two tensors of logits by its definition, in float64."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def direct_loss(large: Tensor, small: Tensor, experts: Tensor, alpha: Tensor) -> Tensor:
    """Return L(alpha) by its definition, float64 [B]; alpha [B, T]."""
    large, small, experts, alpha = large.double(), small.double(), experts.double(), alpha.double()
    fused = large + (alpha[..., None] * (experts - small[:, None])).sum(1)
    away, back = direct_divergence(fused, large), direct_divergence(large, fused)
    total = torch.zeros(len(large), dtype=torch.float64)
    for t in range(experts.shape[1]):
        total += (away - direct_divergence(experts[:, t], small)) ** 2
        total += (back - direct_divergence(small, experts[:, t])) ** 2
    return total


@pytest.mark.parametrize("constant", [0.0, 3.0, -700.0])
def test_a_large_model_that_is_the_small_base_becomes_the_expert(constant: float) -> None:
    _, small, experts = three()
    fused = fuse(small + constant, small, experts, GRID)
    assert torch.equal(fused.alpha_BT, torch.ones(6, 1))
    torch.testing.assert_close(fused.logits_BV.softmax(-1), experts[:, 0].softmax(-1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("search", ["grid", "bisection"])
def test_an_expert_that_is_the_small_base_leaves_the_large_model_bit_for_bit(search: str) -> None:
    large, small, _ = three()
    fused = fuse(large, small, small[:, None], FusionConfig(search=search))
    assert torch.equal(fused.alpha_BT, torch.zeros(6, 1))
    assert torch.equal(fused.logits_BV, large)


def test_equal_losses_of_all_candidates_are_equal_to_the_last_bit() -> None:
    large, _, _ = three()
    alpha = torch.tensor(candidates(GRID, 1))[None]
    found = divergences(large.log_softmax(-1), torch.zeros(6, 1, 40), alpha)
    assert (found == found[:, :1]).all()


def test_alpha_one_is_the_sum_of_the_logits() -> None:
    large, small, experts = three()
    fused = fuse(large, small, experts, FusionConfig(alpha=1.0))
    torch.testing.assert_close(fused.logits_BV, large + experts[:, 0] - small)
    assert fused.loss_B is None


@pytest.mark.parametrize("role", [0, 1, 2])
def test_a_constant_added_to_any_model_changes_nothing(role: int) -> None:
    models = list(three(experts=2))
    before = fuse(*models, GRID)
    models[role] = models[role] + 5.0
    after = fuse(*models, GRID)
    assert torch.equal(before.alpha_BT, after.alpha_BT)
    torch.testing.assert_close(before.logits_BV.softmax(-1), after.logits_BV.softmax(-1))
    torch.testing.assert_close(before.loss_B, after.loss_B, atol=1e-5, rtol=1e-4)


def test_the_hand_case_to_five_digits() -> None:
    large, small, expert = torch.tensor([[2.0, 1, 0]]), torch.tensor([[1.0, 0, 0]]), torch.tensor([[[0.0, 2, 0]]])
    target = torch.stack([direct_divergence(expert[:, 0], small), direct_divergence(small, expert[:, 0])], dim=-1)
    assert target[0].tolist() == pytest.approx([0.77937, 0.84033], abs=5e-6)
    alpha = torch.tensor([[[0.0], [0.5], [0.9], [1.0]]])
    found = divergences(large.log_softmax(-1), expert - small[:, None], alpha)
    assert found[0, 1].tolist() == pytest.approx([0.25264, 0.23524], abs=5e-6)
    assert found[0, 3].tolist() == pytest.approx([0.81115, 0.93802], abs=5e-6)
    loss = losses(found.double(), target[:, None])
    assert loss[0, [0, 2, 3]].tolist() == pytest.approx([1.31357, 0.01069, 0.01055], abs=5e-6)
    fused = fuse(large, small, expert, GRID)
    assert fused.alpha_BT.item() == 1.0
    assert fused.logits_BV.softmax(-1)[0].tolist() == pytest.approx([0.11420, 0.84379, 0.04201], abs=5e-6)


@pytest.mark.parametrize("experts", [1, 3])
def test_the_closed_form_equals_direct_sums_and_grows_with_alpha(experts: int) -> None:
    large, small, expert = three(experts=experts, words=500)
    alpha = torch.tensor(candidates(GRID, experts))
    found = divergences(large.log_softmax(-1), expert - small[:, None], alpha[None])
    for n, one in enumerate(alpha):
        fused = large.double() + (one.double()[:, None] * (expert - small[:, None]).double()).sum(1)
        torch.testing.assert_close(found[:, n, 0].double(), direct_divergence(fused, large), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found[:, n, 1].double(), direct_divergence(large, fused), atol=1e-6, rtol=1e-6)
    for along_one in found.split(21, dim=1):
        assert (along_one.diff(dim=1) >= 0).all()
        assert (along_one[:, 0].abs() < 1e-6).all()


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        (GRID, 1),
        (GRID, 3),
        (FusionConfig(ranges=((0.2, 1.0), (0.0, 3.0), (0.5, 0.5))), 3),
        (FusionConfig(search="joint"), 2),
        (FusionConfig(search="joint", ranges=((0.1, 0.7), (0.0, 2.0))), 2),
    ],
)
def test_the_grid_by_powers_equals_direct_sums(config: FusionConfig, experts: int) -> None:
    large, small, expert = three(experts=experts, words=500)
    delta = expert - small[:, None]
    alpha = torch.tensor(candidates(config, experts))
    log_p, points = large.log_softmax(-1), grid_points(config, experts)
    if config.search == "joint":
        found = joint(log_p.exp(), _centred(log_p, delta), alpha, points)
    else:
        low = torch.tensor([one[0] for one in points]).expand(6, -1)
        along = along_each(log_p.exp(), _centred(log_p, delta), low, torch.full_like(low, 0.1), max(map(len, points)))
        found = torch.cat([along[:, t, : len(one)] for t, one in enumerate(points)], dim=1)
    exact = 1e-6 if config == GRID else 4e-6  # longer shifts are differences of larger float32 numbers
    for n, one in enumerate(alpha):
        fused = large.double() + (one.double()[:, None] * delta.double()).sum(1)
        torch.testing.assert_close(found[:, n, 0].double(), direct_divergence(fused, large), atol=exact, rtol=exact)
        torch.testing.assert_close(found[:, n, 1].double(), direct_divergence(large, fused), atol=exact, rtol=exact)


@pytest.mark.parametrize("search", ["grid", "joint", "bisection"])
def test_shifts_too_large_for_powers_are_searched_candidate_by_candidate(search: str) -> None:
    large, small, experts = three(experts=2)
    experts[:, :, 3] += 100.0
    fused = fuse(large, small, experts, FusionConfig(search=search))
    assert fused.loss_B.isfinite().all()
    torch.testing.assert_close(
        fused.loss_B.double(), direct_loss(large, small, experts, fused.alpha_BT), rtol=1e-3, atol=1e-3
    )


def test_two_shifts_that_fit_alone_and_overflow_together_are_still_searched() -> None:
    large, small, experts = three(experts=2)
    experts[:, :, 3] += 36.0  # twice 36 is a power of float32, four times is not
    config = FusionConfig(search="joint")
    fused = fuse(large, small, experts, config)
    grid = torch.tensor(candidates(config, 2))
    every = torch.stack([direct_loss(large, small, experts, one.expand(6, 2)) for one in grid], dim=1)
    torch.testing.assert_close(fused.loss_B.double(), every.amin(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_the_grid_finds_the_least_loss_of_its_definition(experts: int) -> None:
    models = three(experts=experts)
    fused = fuse(*models, GRID)
    every = [direct_loss(*models, torch.tensor([one]).expand(6, -1)).tolist() for one in candidates(GRID, experts)]
    torch.testing.assert_close(fused.loss_B.double(), torch.tensor(every).double().amin(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused.loss_B.double(), direct_loss(*models, fused.alpha_BT), atol=1e-5, rtol=1e-5)
    assert ((fused.alpha_BT != 0).sum(1) <= 1).all()


def test_doubling_every_expert_changes_nothing() -> None:
    large, small, experts = three(experts=2)
    once = fuse(large, small, experts, GRID)
    twice = fuse(large, small, experts.repeat_interleave(2, dim=1), GRID)
    assert torch.equal(once.logits_BV, twice.logits_BV)
    assert torch.equal(once.alpha_BT, twice.alpha_BT.view(6, 2, 2).sum(-1))


def test_the_order_of_the_experts_changes_nothing() -> None:
    large, small, experts = three(rows=20, experts=3)
    found = fuse(large, small, experts, GRID)
    for order in itertools.permutations(range(3)):
        other = fuse(large, small, experts[:, list(order)], GRID)
        assert torch.equal(other.alpha_BT, found.alpha_BT[:, list(order)])
        torch.testing.assert_close(other.logits_BV, found.logits_BV)


def test_of_equal_experts_the_first_wins() -> None:
    large, small, experts = three()
    fused = fuse(large, small, experts.expand(-1, 3, -1), GRID)
    assert (fused.alpha_BT[:, 0] > 0).all()
    assert (fused.alpha_BT[:, 1:] == 0).all()


def test_a_joint_search_is_never_worse_than_one_active_expert() -> None:
    models = three(rows=12, experts=2)
    joint = fuse(*models, FusionConfig(search="joint"))
    assert (joint.loss_B <= fuse(*models, GRID).loss_B + 1e-6).all()
    assert ((joint.alpha_BT > 0).sum(1) == 2).any()
    torch.testing.assert_close(joint.loss_B.double(), direct_loss(*models, joint.alpha_BT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("experts", [1, 3])
def test_the_bisection_agrees_with_a_fine_grid(experts: int) -> None:
    models = three(rows=12, experts=experts)
    solved, tried = fuse(*models, FusionConfig(search="bisection")), fuse(*models, FusionConfig(step=0.001))
    torch.testing.assert_close(solved.alpha_BT, tried.alpha_BT, atol=0.005, rtol=0)
    assert (solved.loss_B <= fuse(*models, GRID).loss_B + 1e-6).all()
    assert ((solved.alpha_BT != 0).sum(1) <= 1).all()


@pytest.mark.parametrize("search", ["grid", "bisection", "joint"])
def test_ranges_of_each_expert_are_kept(search: str) -> None:
    models = three(rows=12, experts=2)
    config = FusionConfig(search=search, ranges=((0.3, 0.6), (0.0, 0.0)))
    alpha_BT = fuse(*models, config).alpha_BT
    assert (alpha_BT[:, 1] == 0).all()
    active = alpha_BT[:, 0][alpha_BT[:, 0] != 0]
    assert len(active)
    assert ((active > 0.299) & (active < 0.601)).all()


@pytest.mark.parametrize("search", ["grid", "joint", "bisection"])
def test_chunks_of_rows_words_and_candidates_give_the_same(monkeypatch: pytest.MonkeyPatch, search: str) -> None:
    config = FusionConfig(search=search)
    models = three(rows=9, experts=2)
    whole = fuse(*models, config)
    monkeypatch.setattr("multitune.decoding.fusion_powers.LEAST_WORDS", 7)
    for elements in (1, 100, 40 * 9 * 5, 40 * 60 * 3):
        monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", elements)
        part = fuse(*models, config)
        torch.testing.assert_close(part.alpha_BT, whole.alpha_BT, atol=2e-3, rtol=0)
        torch.testing.assert_close(part.logits_BV, whole.logits_BV, atol=1e-2, rtol=1e-3)


def test_half_precision_logits_are_fused_in_single_precision() -> None:
    large, small, experts = (one.bfloat16() for one in three(experts=2))
    fused = fuse(large, small, experts, GRID)
    exact = fuse(large.float(), small.float(), experts.float(), GRID)
    assert fused.logits_BV.dtype == torch.float32
    assert torch.equal(fused.logits_BV, exact.logits_BV)


def test_words_that_models_forbid_stay_forbidden_and_leave_no_nan() -> None:
    large, small, experts = three(experts=2)
    for one in (large, small):
        one[:, 7] = -torch.inf
    experts[..., 7] = -torch.inf
    fused = fuse(large, small, experts, GRID)
    assert not fused.logits_BV.isnan().any()
    assert (fused.logits_BV.softmax(-1)[:, 7] == 0).all()
    kept = [i for i in range(40) if i != 7]
    without = fuse(large[:, kept], small[:, kept], experts[..., kept], GRID)
    assert torch.equal(fused.alpha_BT, without.alpha_BT)


@pytest.mark.parametrize(
    ("config", "experts", "what"),
    [
        (FusionConfig(), 0, "no expert"),
        (FusionConfig(alpha=(1.0, 1.0)), 3, "2 coefficients for 3 experts"),
        (FusionConfig(alpha=-0.5), 1, "below 0"),
        (FusionConfig(alpha=float("nan")), 1, "no finite number"),
        (FusionConfig(ranges=((0.0, 1.0), (0.0, 1.0))), 3, "2 ranges for 3 experts"),
        (FusionConfig(ranges=((2.0, 0.0),)), 1, "reversed"),
        (FusionConfig(ranges=((-1.0, 1.0),)), 1, "below 0"),
        (FusionConfig(ranges=((0.0, float("inf")),)), 1, "not finite"),
        (FusionConfig(ranges=((-1.0, 1.0),), negative=True, search="bisection"), 1, "bisection"),
        (FusionConfig(search="joint"), 3, "at most 2 experts"),
        (FusionConfig(step=1e-6), 1, "2,000,001 points"),
    ],
)
def test_bad_settings_are_refused(config: FusionConfig, experts: int, what: str) -> None:
    with pytest.raises(MultituneError) as caught:
        check_fusion(config, experts)
    assert what in caught.value.what


def test_negative_coefficients_are_allowed_when_meant() -> None:
    models = three(experts=2)
    below = FusionConfig(ranges=((-1.0, 1.0),), negative=True)
    found = fuse(*models, below)
    torch.testing.assert_close(found.loss_B.double(), direct_loss(*models, found.alpha_BT), atol=1e-5, rtol=1e-5)
    check_fusion(FusionConfig(alpha=-1.0, negative=True), 1)
    config = FusionConfig(ranges=((-1.0, 1.0),), negative=True)
    check_fusion(config, 1)
    assert candidates(config, 1)[0] == (-1.0,)
    assert candidates(config, 1)[10] == (0.0,)
