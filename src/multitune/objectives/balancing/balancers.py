"""The balancers by the names that recipes use."""

from __future__ import annotations

from collections.abc import Sequence

from multitune.objectives.balancing.balancer import Balancer
from multitune.objectives.balancing.cagrad import CAGrad
from multitune.objectives.balancing.config import BalancerConfig, GemConfig
from multitune.objectives.balancing.convergence import CoBa, SelfPaced
from multitune.objectives.balancing.famo import Famo
from multitune.objectives.balancing.gem import GEM
from multitune.objectives.balancing.gradnorm import GradNorm
from multitune.objectives.balancing.nash import NashMTL
from multitune.objectives.balancing.pcgrad import PCGrad
from multitune.objectives.balancing.uncertainty import Uncertainty

BALANCERS: dict[str, type[Balancer]] = {
    "uniform": Balancer,
    "famo": Famo,
    "self_paced": SelfPaced,
    "coba": CoBa,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "nash": NashMTL,
}


def make_balancer(config: BalancerConfig, names: Sequence[str], seed: int) -> Balancer:
    """Make the balancer of a configuration, in its first state.

    Args:
        config: the method's options.
        names: of the tasks, in the order of the mixture's task ids.
        seed: of methods that draw; the same on every process.
    """
    if isinstance(config, GemConfig):
        return GEM(config, names, seed)
    return BALANCERS[config.method](config, len(names), seed)
