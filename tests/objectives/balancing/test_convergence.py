"""CoBa and self-paced: the worked example of card 20, and what absent losses do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from multitune.objectives.balancing.config import CobaConfig, SelfPacedConfig
from multitune.objectives.balancing.convergence import (
    CoBa,
    SelfPaced,
    absolute_scores,
    divergence_factor,
    relative_scores,
    slopes,
    weights_of_paper,
)

RATIOS = torch.tensor(
    [
        (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
        (1.0, 0.98, 0.96, 0.94, 0.92, 0.90, 0.88),
        (1.0, 0.95, 0.9, 0.92, 0.95, 1.0, 1.06),
    ],
    dtype=torch.float64,
).T
EVERY = torch.ones(3, dtype=torch.bool)
NAN = float("nan")
SMALL = CobaConfig(warmup_steps=4, window=5)


def coba_after(losses, config=SMALL, start=None):
    balancer = CoBa(config, losses.shape[1], seed=0)
    if start is not None:
        balancer.observe(0, start, ~start.isnan())
    for step, loss_T in enumerate(losses, start=1):
        balancer.observe(step, loss_T, ~loss_T.isnan())
    return balancer


@pytest.mark.parametrize(
    ("steps", "weights"),
    [
        (3, (1 / 3, 1 / 3, 1 / 3)),
        (4, (0.146954, 0.478397, 0.374649)),
        (5, (0.285351, 0.390528, 0.324121)),
        (6, (0.436351, 0.436431, 0.127218)),
        (7, (0.440808, 0.440808, 0.118384)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_coba_gives_the_worked_weights(steps, weights, scale):
    losses = RATIOS * scale * torch.tensor([1.0, 2.0, 0.5])
    balancer = coba_after(losses[:steps], start=losses[0])
    assert balancer.weights(None, EVERY).tolist() == pytest.approx(weights, abs=5e-7)


def test_coba_fits_the_worked_slopes():
    assert coba_after(RATIOS[:4]).slope_UT.tolist() == [pytest.approx((-0.1, -0.02, -0.029), abs=1e-9)]
    assert coba_after(RATIOS).slope_UT[-1][2].item() == pytest.approx(0.04, abs=1e-9)


def test_without_a_pass_before_training_the_first_losses_are_the_start():
    with_start = coba_after(RATIOS * 3, start=RATIOS[0] * 3).weights(None, EVERY)
    assert torch.equal(coba_after(RATIOS * 3).weights(None, EVERY), with_start)


def test_paper_variant_is_a_mixture_of_the_scores_with_a_factor_of_at_most_one():
    relative, absolute = torch.tensor([0.7, 0.3]), torch.tensor([0.1, 0.9])
    assert weights_of_paper(relative, absolute, torch.tensor(0.25)).tolist() == pytest.approx([0.25, 0.75])
    assert weights_of_paper(relative, absolute, torch.tensor(3.0)).tolist() == pytest.approx([0.7, 0.3])
    weights = coba_after(RATIOS, CobaConfig(variant="paper", warmup_steps=4, window=5)).weights(None, EVERY)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[2] < 1 / 3  # the task that diverges


def reference_weights(ratios, t, warmup, window, tau):
    """CoBa's code variant once more, from the card's formulas, in plain NumPy over whole lists."""
    tasks = ratios.shape[1]

    def fit(values):
        return np.polyfit(np.arange(len(values)), values, 1)[0]

    def softmax(values):
        e = np.exp(values - values.max())
        return e / e.sum()

    per_task, highest = [], []
    for u in range(warmup, t + 1):
        rows = ratios[max(0, u - window) : u]
        per_task.append([fit(rows[:, i]) for i in range(tasks)])
        highest.append(fit(rows.max(axis=1)))
    now = np.array(per_task[-1])
    kept = np.array(per_task[max(0, t - window) :])
    highest = np.array(highest)
    rcs = softmax(tasks * now / np.abs(now).sum())
    acs = softmax(-len(kept) * now / np.abs(kept).sum(0))
    n = len(highest)
    df = n * softmax(-tau * n * highest / np.abs(highest).sum())[-1]
    w = softmax(tasks * (df * rcs + (1 - df) * acs))
    return w * 0.9 + 0.1 / tasks if (w < 0.1 / tasks).any() else w


@pytest.mark.parametrize("t", [6, 9, 17, 40])
def test_coba_equals_the_formulas_over_a_long_noisy_history(t):
    generator = torch.Generator().manual_seed(3)
    decay = torch.tensor([0.99, 0.95, 1.002, 0.9], dtype=torch.float64) ** torch.arange(40)[:, None]
    losses = decay + 0.05 * torch.rand(40, 4, generator=generator, dtype=torch.float64)
    balancer = coba_after(losses[:t], CobaConfig(warmup_steps=6, window=9))
    expected = reference_weights((losses / losses[0])[:t].numpy(), t, 6, 9, 5.0)
    assert np.allclose(balancer.weights(None, torch.ones(4, dtype=torch.bool)).numpy(), expected, atol=1e-12)


def test_equal_slopes_give_uniform_scores():
    assert relative_scores(torch.full((4,), -0.3, dtype=torch.float64)).tolist() == pytest.approx([0.25] * 4)


def test_scores_of_histories_without_any_slope():
    zero = torch.zeros(5, 3, dtype=torch.float64)
    assert relative_scores(zero[0]).tolist() == pytest.approx([1 / 3] * 3)
    assert absolute_scores(zero).tolist() == pytest.approx([1 / 3] * 3)
    assert divergence_factor(zero[:, 0], 5.0).item() == pytest.approx(1.0)


def test_slopes_are_fitted_on_each_tasks_own_steps():
    steps = torch.arange(6, dtype=torch.float64)
    values = torch.stack((5 - 2 * steps, 1 + 3 * steps, torch.full((6,), 0.1), steps), 1).to(torch.float64)
    values[[1, 2, 5], 1] = NAN
    values[1:, 3] = NAN
    fitted = slopes(steps, values, torch.tensor([9.0, 9.0, 9.0, 9.0], dtype=torch.float64))
    assert fitted.tolist() == pytest.approx([-2, 3, 0, 9])
    assert fitted[2] == 0  # exactly, although the mean of six times 0.1 is not 0.1


def test_a_loss_missing_on_a_straight_line_changes_no_slope():
    """The published code would shift the later losses of task 2 by one step."""
    losses = RATIOS.clone()
    losses[4, 1] = NAN
    whole, gap = coba_after(RATIOS), coba_after(losses)
    assert torch.allclose(whole.weights(None, EVERY), gap.weights(None, EVERY), atol=1e-12)


def test_a_missing_loss_does_not_move_the_maximum():
    losses = torch.ones(6, 2, dtype=torch.float64)
    losses[:, 0] = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    losses[4, 1] = NAN
    assert coba_after(losses, CobaConfig(warmup_steps=3, window=6)).highest_H.tolist() == [1.0] * 6


def test_a_task_memorised_from_the_start_gives_no_nan():
    losses = RATIOS.clone()
    losses[:, 0] = 0.0
    assert torch.isfinite(coba_after(losses).weights(None, EVERY)).all()


def test_coba_refuses_a_window_shorter_than_the_warm_up():
    with pytest.raises(ValidationError, match="window 5 is shorter than warmup_steps 6"):
        CobaConfig(warmup_steps=6, window=5)


def self_paced_after(losses, **options):
    balancer = SelfPaced(SelfPacedConfig(**options), losses.shape[1], seed=0)
    for step, loss_T in enumerate(losses, start=1):
        balancer.observe(step, loss_T, ~loss_T.isnan())
    return balancer


def test_self_paced_equals_its_formula():
    weights = self_paced_after(RATIOS[:4]).weights(None, EVERY)
    a = np.array([-0.1, -0.02, -0.029])
    r = 3 * a / np.abs(a).sum()
    score = np.exp(r) / np.exp(r).sum() * -r
    expected = np.exp(50 * score) / np.exp(50 * score).sum()
    assert weights.numpy() == pytest.approx(expected, abs=1e-9)


def test_self_paced_forgets_what_left_the_window():
    late = self_paced_after(RATIOS, window=3).weights(None, EVERY)
    assert torch.allclose(late, self_paced_after(RATIOS[-3:], window=3).weights(None, EVERY))


def test_self_paced_is_uniform_until_every_task_has_two_losses():
    losses = RATIOS[:5].clone()
    losses[:4, 1] = NAN
    assert self_paced_after(losses).weights(None, EVERY).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("make", "config"), [(CoBa, CobaConfig), (SelfPaced, SelfPacedConfig)])
def test_validation_is_due_every_interval(make, config):
    balancer = make(config(update_interval=3), 2, seed=0)
    assert [step for step in range(1, 10) if balancer.due(step)] == [3, 6, 9]
    assert balancer.due(0) == (make is CoBa)  # the pass before training that losses are divided by
