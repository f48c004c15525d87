"""The balancers by the names that recipes use."""

from __future__ import annotations

from collections.abc import Callable

from multitune.objectives.balancing.balancer import Balancer
from multitune.objectives.balancing.config import BalancerConfig
from multitune.objectives.balancing.convergence import CoBa, SelfPaced
from multitune.objectives.balancing.famo import Famo

BALANCERS: dict[str, Callable[..., Balancer]] = {
    "famo": Famo,
    "self_paced": SelfPaced,
    "coba": CoBa,
}


def make_balancer(config: BalancerConfig, tasks: int, seed: int) -> Balancer:
    """Make a balancer in its first state.

    Args:
        config: the method and its options.
        tasks: number of tasks T, in the order of the mixture's task ids.
        seed: of the methods that draw (the order of PCGrad's projections); the same on every process.
    """
    if config.method == "uniform":
        return Balancer(tasks)
    return BALANCERS[config.method](config, tasks)
