"""The plan of a sweep before the bill: its variants, what they share, and what the rest would cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multitune.recipes.graph import EstimatorNode, TrainNode
from multitune.recipes.node import Opened
from multitune.recipes.plan import Plan, plan_nodes
from multitune.recipes.sweep import Sweep
from multitune.recipes.table_plan import plan_table_nodes
from multitune.recipes.work import lay_out


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do.

    Attributes:
        variants: their names.
        nodes: trainings and scorings of all variants together.
        shared: so many of them are another variant's too, and done once.
        trained: the plan of every training that is left; a name tells the axis values that it depends on.
        first: names of the trainings of the first variant.
        seconds: forecast of all training on this machine, one node after the other.
    """

    variants: tuple[str, ...]
    nodes: int
    shared: int
    trained: Plan
    first: tuple[str, ...]
    seconds: float


def plan_sweep(sweep: Sweep) -> SweepPlan:
    """Compute the plan of a checked sweep; data that variants share are read once.

    Raises:
        MultituneError: rows that are refused, an empty task, a model that cannot be found.
    """
    opened = [Opened(variant.recipe) for variant in sweep.variants]
    for one in opened:
        one.resolved = opened[0].resolved
    works = lay_out(sweep.variants, opened, Path(), swept=True)
    nodes = sum(len(work.users) for work in works)
    trained = [(work.label, work.node, opened[work.variant].recipe) for work in works]
    only = [(label, node, recipe) for label, node, recipe in trained if isinstance(node, TrainNode)]
    first = tuple(work.label for work in works if 0 in work.variants and isinstance(work.node, TrainNode))
    tables = plan_table_nodes(
        (label, node, recipe) for label, node, recipe in trained if isinstance(node, EstimatorNode)
    )
    plan = Plan(sweep.name, *plan_nodes(only, opened[0].resolved), tables=tables)
    return SweepPlan(
        variants=tuple(variant.name for variant in sweep.variants),
        nodes=nodes,
        shared=nodes - len(works),
        trained=plan,
        first=first,
        seconds=sum(node.seconds for node in plan.nodes),
    )
