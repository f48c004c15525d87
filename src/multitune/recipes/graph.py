"""The graph of a run: which node reads which model, in an order in which it can be walked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from multitune.errors import MultituneError
from multitune.recipes.schema import BASE, Recipe, ScoreStep, TrainStep
from multitune.scoring.score import ScoreConfig


@dataclass(frozen=True)
class TrainNode:
    """Trains ``model`` on ``tasks`` and leaves a model of its own name.

    ``round`` counts the train steps on the way from the recipe's own model, this one included.
    """

    name: str
    step: TrainStep
    model: str
    tasks: tuple[str, ...]
    round: int = 1


@dataclass(frozen=True)
class ScoreNode:
    """Scores ``model`` on ``tasks``; its name is "<model>@score", or the score step's own."""

    name: str
    model: str
    tasks: tuple[str, ...]
    config: ScoreConfig


Node = TrainNode | ScoreNode


def build(recipe: Recipe) -> list[Node]:
    """Return the nodes of a recipe in an order in which every node comes after the one it reads.

    A train step with ``tasks: each`` becomes one node per training task, named "<step>.<task>". The base and every
    model are scored right when they stand, unless the recipe says ``score: false``.

    Raises:
        MultituneError: steps that wait for one another.
    """
    order = _order({name: step.model.partition(".")[0] for name, step in recipe.steps.items()})
    nodes: list[Node] = []
    rounds = {BASE: 0}
    if recipe.score:
        nodes.append(ScoreNode(f"{BASE}@score", BASE, tuple(recipe.tasks), recipe.score))
    for name in order:
        step = recipe.steps[name]
        if isinstance(step, ScoreStep):
            tasks = tuple(recipe.tasks) if step.tasks == "all" else step.tasks
            config = ScoreConfig(**step.model_dump(exclude={"do", "model", "tasks"}))
            nodes.append(ScoreNode(name, step.model, tasks, config))
            continue
        for node in _train_nodes(name, step, recipe, rounds.get(step.model, 0) + 1):
            nodes.append(node)
            rounds[node.name] = node.round
            if recipe.score:
                scored = node.tasks if step.tasks == "each" else tuple(recipe.tasks)
                nodes.append(ScoreNode(f"{node.name}@score", node.name, scored, recipe.score))
    return nodes


def refuse_rows_longer_than(positions: int | None, node: TrainNode) -> None:
    """Refuse a row length that the model has no positions for.

    Args:
        positions: longest input of the model in tokens; None where positions are relative.
        node: the training.

    Raises:
        MultituneError: rows are longer.
    """
    length = node.step.training.max_length
    if positions is not None and length > positions:
        raise MultituneError(
            f"The model has positions for {positions} tokens, and rows may have {length}.",
            f"steps.{node.name.partition('.')[0]}.training.max_length",
            f"Set it to at most {positions}.",
        )


def _train_nodes(name: str, step: TrainStep, recipe: Recipe, round: int) -> list[TrainNode]:
    if step.tasks == "each":
        return [TrainNode(f"{name}.{task}", step, step.model, (task,), round) for task in recipe.training_tasks]
    tasks = recipe.training_tasks if step.tasks == "all" else step.tasks
    return [TrainNode(name, step, step.model, tasks, round)]


def _order(reads: Mapping[str, str]) -> list[str]:
    """Return step names, each after the step whose model it reads, otherwise as the recipe lists them."""
    order: list[str] = []
    waiting = list(reads)
    while waiting:
        ready = next((name for name in waiting if reads[name] not in waiting), None)
        if ready is None:
            raise _cycle(reads, waiting[0])
        waiting.remove(ready)
        order.append(ready)
    return order


def _cycle(reads: Mapping[str, str], step: str) -> MultituneError:
    """Follow the steps from one that can never start until one of them comes again."""
    path = [step]
    while path[-1] not in path[:-1]:
        path.append(reads[path[-1]])
    cycle = path[path.index(path[-1]) :]
    return MultituneError(
        f"The steps {' -> '.join(cycle)} wait for one another.",
        f"steps.{cycle[0]}.model",
        "Let one of them start from base.",
    )
