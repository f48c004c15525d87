"""Balancers that read the slopes of validation losses: self-paced (MFTCoder 0.3) and CoBa (arXiv 2410.06741).

Shape legend: ``T`` tasks, ``H`` records in the window, ``U`` slopes kept. A record is the losses seen after one step;
a task without a loss there has NaN, and its slope is fitted on its own (step, value) pairs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from multitune.objectives.balancing.balancer import Balancer, Observed, on_cpu, share, unknown
from multitune.objectives.balancing.config import CobaConfig, SelfPacedConfig


class SelfPaced(Balancer):
    """r_i = T a_i / sum_j |a_j| of the slopes a; weights softmax(50 softmax(r)_i (-r_i)).

    Uniform until every task has two losses, and whenever all slopes are 0.
    """

    observes: Observed = "validation"
    STATE: ClassVar[tuple[str, ...]] = ("step_H", "loss_HT", "slope_T")

    config: SelfPacedConfig

    def __init__(self, config: SelfPacedConfig, tasks: int, seed: int) -> None:
        super().__init__(config, tasks, seed)
        self.step_H = unknown(0)
        self.loss_HT = unknown(0, tasks)
        self.slope_T = unknown(tasks)

    def weights(self, loss_T: Tensor | None, present_T: Tensor) -> Tensor:
        if self.slope_T.isnan().any():
            return super().weights(loss_T, present_T)
        r_T = self.tasks * _relative(self.slope_T)
        score_T = r_T.softmax(0) * -r_T
        return share((self.config.sharpness * score_T).softmax(0), present_T)

    def due(self, step: int) -> bool:
        return step > 0 and step % self.config.update_interval == 0

    def observe(self, step: int, loss_T: Tensor, present_T: Tensor) -> None:
        loss_T = torch.where(present_T.cpu(), on_cpu(loss_T), torch.nan)
        self.step_H = _appended(self.step_H, torch.tensor(float(step), dtype=torch.float64), self.config.window)
        self.loss_HT = _appended(self.loss_HT, loss_T, self.config.window)
        self.slope_T = slopes(self.step_H, self.loss_HT, self.slope_T)


class CoBa(Balancer):
    """Relative and absolute convergence scores, mixed by a divergence factor.

    ``observe(0, ...)`` takes the losses of a full validation pass before training, which later losses are divided by;
    a task without one is divided by its first loss. Slopes are kept from the end of the warm-up on.
    """

    observes: Observed = "validation"
    STATE: ClassVar[tuple[str, ...]] = (
        "start_T", "latest_T", "step_H", "ratio_HT", "highest_H", "records", "slope_UT", "highest_slope_U", "weight_T",
    )  # fmt: skip

    config: CobaConfig

    def __init__(self, config: CobaConfig, tasks: int, seed: int) -> None:
        super().__init__(config, tasks, seed)
        self.start_T, self.latest_T = unknown(tasks), unknown(tasks)
        self.step_H, self.ratio_HT, self.highest_H = unknown(0), unknown(0, tasks), unknown(0)
        self.records = torch.tensor(0)
        self.slope_UT, self.highest_slope_U = unknown(0, tasks), unknown(0)
        self.weight_T = torch.ones(tasks, dtype=torch.float64)

    def weights(self, loss_T: Tensor | None, present_T: Tensor) -> Tensor:
        return share(self.weight_T, present_T)

    def due(self, step: int) -> bool:
        return step % self.config.update_interval == 0

    def observe(self, step: int, loss_T: Tensor, present_T: Tensor) -> None:
        loss_T = torch.where(present_T.cpu(), on_cpu(loss_T), torch.nan)
        self.start_T = torch.where(self.start_T.isnan(), loss_T, self.start_T)
        if step == 0:
            return
        self._record(step, loss_T / torch.where(self.start_T > 0, self.start_T, 1.0))
        if step >= self.config.warmup_steps:
            self._keep_slopes()
            scores = relative_scores(self.slope_UT[-1]), absolute_scores(self.slope_UT)
            factor = divergence_factor(self.highest_slope_U, self.config.tau)
            self.weight_T = COBA_WEIGHTS[self.config.variant](*scores, factor)

    def _record(self, step: int, ratio_T: Tensor) -> None:
        window = self.config.window
        # a task without a loss counts in the maximum with its latest: the maximum must not jump because it is missing
        self.latest_T = torch.where(ratio_T.isnan(), self.latest_T, ratio_T)
        highest = torch.where(self.latest_T.isnan(), -torch.inf, self.latest_T).max()
        highest = torch.where(highest.isinf(), torch.nan, highest)
        self.step_H = _appended(self.step_H, torch.tensor(float(step), dtype=torch.float64), window)
        self.ratio_HT = _appended(self.ratio_HT, ratio_T, window)
        self.highest_H = _appended(self.highest_H, highest, window)
        self.records = self.records + 1

    def _keep_slopes(self) -> None:
        """Append the slopes. The absolute scores see those at list index >= records - window, the factor sees all."""
        before_T = self.slope_UT[-1] if len(self.slope_UT) else torch.zeros(self.tasks, dtype=torch.float64)
        slope_T = slopes(self.step_H, self.ratio_HT, before_T)
        highest_slope_1 = slopes(self.step_H, self.highest_H[:, None], torch.zeros(1, dtype=torch.float64))
        self.highest_slope_U = torch.cat((self.highest_slope_U, highest_slope_1))
        seen = len(self.highest_slope_U) - max(0, int(self.records) - self.config.window)
        self.slope_UT = _appended(self.slope_UT, slope_T, seen)


def slopes(step_H: Tensor, value_HT: Tensor, before_T: Tensor) -> Tensor:
    """Least-squares slope of every column over the steps where it has a value; ``before_T`` with fewer than two.

    Exactly 0 for constant values: a rounding error here would be blown up to a full weight by the normalisation.
    """
    known_HT = ~value_HT.isnan()
    count_T = known_HT.sum(0)
    mean_T = torch.where(known_HT, step_H[:, None], 0.0).sum(0) / count_T.clamp_min(1)
    x_HT = torch.where(known_HT, step_H[:, None] - mean_T, 0.0)
    least_T = torch.where(known_HT, value_HT, torch.inf).amin(0)
    y_HT = torch.where(known_HT, value_HT - least_T, 0.0)
    slope_T = (x_HT * y_HT).sum(0) / x_HT.square().sum(0)
    return torch.where(count_T >= 2, slope_T, before_T)


def relative_scores(slope_T: Tensor) -> Tensor:
    """RCS: softmax_i of T a_i / sum_j |a_j|; a slow or rising task gets more."""
    return (len(slope_T) * _relative(slope_T)).softmax(0)


def absolute_scores(slope_UT: Tensor) -> Tensor:
    """ACS: softmax_i of -U a_i(now) / sum_u |a_i(u)|; a task that rises against its own past gets less."""
    return (-len(slope_UT) * _relative(slope_UT)[-1]).softmax(0)


def divergence_factor(highest_slope_U: Tensor, tau: float) -> Tensor:
    """DF: U softmax_u(-tau U a(u) / sum |a|) at u = now, of the slopes of the highest loss ratio; a scalar."""
    steps = len(highest_slope_U)
    return steps * (-tau * steps * _relative(highest_slope_U)).softmax(0)[-1]


def weights_of_code(relative_T: Tensor, absolute_T: Tensor, factor: Tensor) -> Tensor:
    """Weights of the authors' code: softmax(T omega), mixed with 1/10 uniform when one falls below 1/(10 T)."""
    tasks = len(relative_T)
    weight_T = (tasks * (factor * relative_T + (1 - factor) * absolute_T)).softmax(0)
    mixed_T = weight_T * (1 - 1 / 10) + 1 / (10 * tasks)
    return torch.where((weight_T < 1 / (10 * tasks)).any(), mixed_T, weight_T)


def weights_of_paper(relative_T: Tensor, absolute_T: Tensor, factor: Tensor) -> Tensor:
    """Weights of the paper: omega itself, with the factor at most 1."""
    factor = factor.clamp_max(1.0)
    return factor * relative_T + (1 - factor) * absolute_T


COBA_WEIGHTS = {"code": weights_of_code, "paper": weights_of_paper}


def _relative(value: Tensor) -> Tensor:
    """Return values / sum |values| along the first axis; 0 where all are 0."""
    total = value.abs().sum(0)
    return value / torch.where(total > 0, total, torch.ones_like(total))


def _appended(rows: Tensor, row: Tensor, keep: int) -> Tensor:
    return torch.cat((rows, row[None]))[-keep:]
