"""Claims and their verdicts: what an effect of every seed, and its interval, say about a published sentence.

Shape legend: ``K`` seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Metrics = Mapping[str, float]
"""What one arm measured with one seed."""

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]

RESAMPLES = 10_000  # of a handful of seeds: cheap, and the bounds are then exact to the printed digits


@dataclass(frozen=True)
class Count:
    """A claim's own rule: the threshold is met by ``least`` of every ``of`` seeds."""

    least: int
    of: int

    def __str__(self) -> str:
        return f"in {self.least} of {self.of} seeds"


@dataclass(frozen=True)
class Claim:
    """One sentence that can turn out either way.

    Attributes:
        key: short name, "1" or "2a".
        statement: the sentence.
        measure: what the effect is, with its unit.
        effect: the arms' metrics of one seed -> the effect: a difference between arms of that seed; larger is better
            for the claim. nan where it is not defined for that seed.
        threshold: what the effect has to reach.
        count: decides in place of the interval, where the claim itself says how many seeds have to agree.
    """

    key: str
    statement: str
    measure: str
    effect: Callable[[Mapping[str, Metrics]], float]
    threshold: float
    count: Count | None = None

    @property
    def rule(self) -> str:
        """What has to hold, in words."""
        return f"at least {self.threshold:g} {self.count or 'in the whole interval'}"


@dataclass(frozen=True)
class Judgement:
    """A claim against the seeds.

    Attributes:
        effects: of every seed, in their order; nan where not defined.
        mean, low, high: mean over the seeds and its 95 % interval (see ``scoring.seeds``); nan when an effect is not
            defined, an infinite interval of one seed.
        met: seeds whose effect reaches the threshold.
        sign_test_p: two-sided, of the effects against the threshold.
        verdict: see ``judge``.
    """

    effects: tuple[float, ...]
    mean: float
    low: float
    high: float
    met: int
    sign_test_p: float
    verdict: Verdict


def judge(claim: Claim, seeds: Sequence[Mapping[str, Metrics]]) -> Judgement:
    """Return what the seeds say about a claim.

    reproduced: the 95 % interval of the mean effect lies wholly at or above the threshold. not reproduced: wholly below
    it. inconclusive: the interval holds the threshold, or the effect is not defined for some seed. A claim that counts
    seeds is decided by its count instead, as soon as the seeds still missing could not turn it.

    Args:
        seeds: for every seed the metrics of all arms; at least one seed.
    """
    from multitune.scoring.seeds import paired_seed_difference

    effect_K = tuple(float(claim.effect(arms)) for arms in seeds)
    met = sum(effect >= claim.threshold for effect in effect_K)
    if any(math.isnan(effect) for effect in effect_K):
        return Judgement(effect_K, math.nan, math.nan, math.nan, met, math.nan, "inconclusive")
    excess = paired_seed_difference([claim.threshold] * len(effect_K), effect_K, seed=0, resamples=RESAMPLES)
    low, high = claim.threshold + excess.low, claim.threshold + excess.high
    verdict = counted(claim.count, met, len(effect_K)) if claim.count else compared(excess.low, excess.high)
    mean = math.fsum(effect_K) / len(effect_K)
    return Judgement(effect_K, mean, low, high, met, excess.sign_test_p, verdict)


def compared(low: float, high: float) -> Verdict:
    """Return the verdict of an interval of the effect's excess over the threshold."""
    if low >= 0:
        return "reproduced"
    return "not reproduced" if high < 0 else "inconclusive"


def counted(count: Count, met: int, seeds: int) -> Verdict:
    """Return the verdict of a count: ``met`` of ``seeds`` seeds reach the threshold.

    With more seeds than the rule names, the same share of them is asked for; with fewer, those that are missing are
    imagined once all for the claim and once all against it.
    """
    missing = max(0, count.of - seeds)
    needed = math.ceil(count.least * (seeds + missing) / count.of)
    if met >= needed:
        return "reproduced"
    return "inconclusive" if met + missing >= needed else "not reproduced"
