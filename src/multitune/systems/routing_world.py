"""A linear world in which tasks are mixtures of skills, head by head: what routing can be measured on in seconds.

Shape legend: ``T`` tasks, ``N`` rows of a task, ``H`` heads, ``S`` skills, ``D`` width, ``R`` rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multitune.models.tuners import register_tuners
from multitune.models.tuners.mhr import MhrConfig, MhrLayer
from multitune.models.tuners.task_ids import UNKNOWN, TaskIds

WIDTH, HEADS, SKILLS, RANK = 32, 8, 4, 2
NOISE = 0.05
POWER = 3.15
"""Mean square of what a task adds to the frozen layer's outputs: card 14 measured 3.0 to 3.3 of the untouched layer."""


@dataclass(frozen=True)
class Rows:
    """Inputs and outputs of tasks, float32 [T, N, D]."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class World:
    """A frozen layer [D, D], and rows of tasks: those that are learned together, the same tasks' others, new tasks."""

    weight: Tensor
    train: Rows
    validation: Rows
    few: Rows
    few_validation: Rows


def make_world(seed: int, *, tasks: int, rows: int, new_tasks: int, few: int, validation: int) -> World:
    """Draw a world: every task picks, per head, a random subset of the skills and averages their factors."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    a_HSDR = torch.randn(HEADS, SKILLS, WIDTH // HEADS, RANK, generator=generator)
    b_HSRD = torch.randn(HEADS, SKILLS, RANK, WIDTH // HEADS, generator=generator)
    picked_THS = torch.rand(tasks + new_tasks, HEADS, SKILLS, generator=generator) < 0.5
    lone_TH = torch.randint(SKILLS, (tasks + new_tasks, HEADS), generator=generator)
    none_TH = ~picked_THS.any(dim=-1)
    picked_THS |= nn.functional.one_hot(lone_TH, SKILLS).bool() & none_TH[..., None]
    alpha_THS = picked_THS / picked_THS.sum(dim=-1, keepdim=True)
    a_TDR = torch.einsum("ths,hsdr->thdr", alpha_THS, a_HSDR).flatten(1, 2)
    b_TRD = torch.einsum("ths,hsrd->trhd", alpha_THS, b_HSRD).flatten(2, 3)
    change_TDD = a_TDR @ b_TRD
    change_TDD *= (POWER / change_TDD.square().sum(dim=1).mean()).sqrt()

    def drawn(change: Tensor, count: int) -> Rows:
        inputs = torch.randn(len(change), count, WIDTH, generator=generator)
        noise = NOISE * torch.randn(len(change), count, WIDTH, generator=generator)
        return Rows(inputs, inputs @ weight.T + inputs @ change + noise)

    old, new = change_TDD[:tasks], change_TDD[tasks:]
    return World(weight, drawn(old, rows), drawn(old, validation), drawn(new, few), drawn(new, validation))


def routed_layer(weight: Tensor, tasks: int, *, skills: int, heads: int, rank: int, seed: int) -> MhrLayer:
    """Return the frozen layer with a fresh inventory; one skill and one head are plain LoRA."""
    register_tuners()
    torch.manual_seed(seed)
    base = nn.Linear(WIDTH, WIDTH, bias=False)
    base.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer = MhrLayer(base, (WIDTH, WIDTH), TaskIds())
    config = MhrConfig(r=rank, n_skills=skills, n_splits=heads, tasks=[str(task) for task in range(tasks)])
    layer.update_layer("default", config, nn.Parameter(torch.empty(tasks, heads, skills).uniform_(-1e-3, 1e-3)))
    layer.set_adapter("default")
    return layer


def for_one_task(layer: MhrLayer, seed: int, *, average: bool = False) -> MhrLayer:
    """Return a copy for one new task: with the modules and fresh logits, or with the average of the modules alone."""
    config = layer.configs["default"]
    skills = 1 if average else config.n_skills
    weight = layer.get_base_layer().weight
    fresh = routed_layer(weight, 1, skills=skills, heads=config.n_splits, rank=config.r, seed=seed)  # type: ignore[arg-type]
    with torch.no_grad():
        for name in ("mhr_A", "mhr_B"):
            learned = getattr(layer, name)["default"]
            getattr(fresh, name)["default"].copy_(learned.mean(dim=1, keepdim=True) if average else learned)
    return fresh


def fit(layer: MhrLayer, rows: Rows, *, steps: int, rate: float, routing_rate: float, modules: bool = True) -> None:
    """Minimise the mean squared error over all rows of all tasks by Adam, its rates falling to zero in a line.

    Args:
        layer: its tasks are those of the rows, in their order.
        rows: what is learned.
        steps: each over all rows.
        rate, routing_rate: of the modules, and of the logits.
        modules: whether the modules train; else the logits alone do (MHR-z).
    """
    for name in ("mhr_A", "mhr_B"):
        getattr(layer, name)["default"].requires_grad_(modules)
    groups = [{"params": [layer.mhr_Z["default"]], "lr": routing_rate}]
    if modules:
        groups.append({"params": [layer.mhr_A["default"], layer.mhr_B["default"]], "lr": rate})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    layer.task_ids.current = torch.arange(len(rows.inputs))
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(rows.inputs) - rows.outputs).square().mean().backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def error(layer: MhrLayer, rows: Rows, *, known: bool = True) -> float:
    """Return the mean squared error; with ``known`` false as the layer answers tasks that it does not know."""
    layer.task_ids.current = torch.arange(len(rows.inputs)) if known else torch.full((len(rows.inputs),), UNKNOWN)
    return float((layer(rows.inputs) - rows.outputs).square().mean())
