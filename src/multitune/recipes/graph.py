"""The graph of a run: which node reads which model, in an order in which it can be walked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from multitune.adaptation.config import AdaptationConfig, for_tasks
from multitune.adaptation.methods import CONTINUE
from multitune.errors import MultituneError
from multitune.recipes.schema import BASE, EstimatorStep, FuseStep, MergeStep, Recipe, ScoreStep, Step, TrainStep
from multitune.recipes.soft_prompts import prompt_nodes
from multitune.scoring.score import ScoreConfig
from multitune.weights.config import MergedModel


@dataclass(frozen=True)
class TrainNode:
    """Trains ``model`` on ``tasks`` and leaves a model of its own name.

    Attributes:
        name: of the model that it leaves.
        step: of the recipe.
        model: base or a node.
        tasks: that it trains.
        adaptation: what trains; where the step goes on with an adapter, that of the step that began it.
        round: how many train steps lie on the way from the recipe's own model, this one included.
        prompts: by task, the node whose prompt stands before its inputs.
    """

    name: str
    step: TrainStep
    model: str
    tasks: tuple[str, ...]
    adaptation: AdaptationConfig
    round: int = 1
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        """The models that it reads: base or nodes."""
        return tuple(dict.fromkeys([self.model, *self.prompts.values()]))


@dataclass(frozen=True)
class EstimatorNode:
    """Fits a tabular estimator to the rows of ``tasks`` and leaves a model of its own name."""

    name: str
    step: EstimatorStep
    tasks: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """No model: it starts from nothing."""
        return ()


@dataclass(frozen=True)
class ScoreNode:
    """Scores ``model`` on ``tasks``; its name is "<model>@score", the score step's own, or "<step>@4-shot"."""

    name: str
    model: str
    tasks: tuple[str, ...]
    config: ScoreConfig

    @property
    def reads(self) -> tuple[str, ...]:
        """The models that it reads: base or nodes."""
        return (self.model,)


@dataclass(frozen=True)
class FuseNode:
    """Writes down which models are fused; those of ``reads`` are base or nodes, the others lie elsewhere.

    ``step`` names every expert: a step with ``tasks: each`` stands for all of its models no more.
    """

    name: str
    step: FuseStep
    reads: tuple[str, ...]


@dataclass(frozen=True)
class MergeNode:
    """Merges models; those of ``reads`` are base or nodes, the others lie elsewhere.

    ``step`` names every model that is merged: a step with ``tasks: each`` stands for all of its models no more.
    """

    name: str
    step: MergeStep
    reads: tuple[str, ...]


Node = TrainNode | EstimatorNode | ScoreNode | FuseNode | MergeNode


def build(recipe: Recipe) -> list[Node]:
    """Return the nodes of a recipe in an order in which every node comes after the one it reads.

    A train step with ``tasks: each`` becomes one node per training task, named "<step>.<task>". The base and every
    model are scored right when they stand, unless the recipe says ``score: false``.

    Raises:
        MultituneError: steps that wait for one another.
    """
    order = _order({name: tuple(one.partition(".")[0] for one in sources(step)) for name, step in recipe.steps.items()})
    nodes: list[Node] = []
    rounds = {BASE: 0}
    known: dict[str, tuple[str, ...]] = {}  # the tasks that every adapter has seen
    if recipe.score:
        nodes.append(ScoreNode(f"{BASE}@score", BASE, tuple(recipe.tasks), recipe.score))
    for name in order:
        step = recipe.steps[name]
        if isinstance(step, ScoreStep):
            tasks = tuple(recipe.tasks) if step.tasks == "all" else step.tasks
            nodes += [ScoreNode(name + suffix, step.model, tasks, one) for suffix, one in step.settings.items()]
            continue
        if isinstance(step, EstimatorStep):
            for fitted in estimator_nodes(name, step, recipe):
                nodes.append(fitted)
                if recipe.score:
                    nodes.append(ScoreNode(f"{fitted.name}@score", fitted.name, _asked(fitted, recipe), recipe.score))
            continue
        if isinstance(step, FuseStep):
            step = with_all_experts(step, recipe)
            made = {BASE, *(node.name for node in nodes)}
            nodes.append(FuseNode(name, step, tuple(dict.fromkeys(one for one in step.sources if one in made))))
            if recipe.score:
                nodes.append(ScoreNode(f"{name}@score", name, tuple(recipe.tasks), recipe.score))
            continue
        if isinstance(step, MergeStep):
            step = with_all_models(step, recipe)
            made = {BASE, *(node.name for node in nodes)}
            reads = tuple(one for one in step.sources if one in made)
            nodes.append(MergeNode(name, step, reads))
            rounds[name] = max((rounds.get(one, 0) for one in reads), default=0)
            if recipe.score:
                nodes.append(ScoreNode(f"{name}@score", name, tuple(recipe.tasks), recipe.score))
            continue
        routed = known.get(step.model, ()) if step.adapt.method == CONTINUE else ()
        for node in _train_nodes(name, step, recipe, rounds.get(step.model, 0) + 1, routed):
            nodes.append(node)
            rounds[node.name] = node.round
            known[node.name] = tuple(dict.fromkeys([*routed, *node.tasks]))
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


def sources(step: Step) -> tuple[str, ...]:
    """Return the models that a step reads, as the recipe names them."""
    if isinstance(step, EstimatorStep):
        return ()
    if isinstance(step, FuseStep | MergeStep):
        return step.sources
    prompt = step.soft_prompt.step if isinstance(step, TrainStep) and step.soft_prompt is not None else None
    return (step.model,) if prompt is None else (step.model, prompt)


def with_all_models(step: MergeStep, recipe: Recipe) -> MergeStep:
    """Return a merge step in which every step with ``tasks: each`` is replaced by its models, one per task."""
    models: list[MergedModel] = []
    for each in step.models:
        models += [each.model_copy(update={"model": name}) for name in _models_of(each.model, recipe)]
    return step.model_copy(update={"models": tuple(models)})


def with_all_experts(step: FuseStep, recipe: Recipe) -> FuseStep:
    """Return a fuse step in which every expert with ``tasks: each`` is replaced by its models, one per task."""
    return step.model_copy(update={"experts": tuple(one for name in step.experts for one in _models_of(name, recipe))})


def _models_of(name: str, recipe: Recipe) -> list[str]:
    made = recipe.steps.get(name)
    if isinstance(made, TrainStep) and made.tasks == "each":
        return [f"{name}.{task}" for task in recipe.training_tasks]
    return [name]


def _train_nodes(name: str, step: TrainStep, recipe: Recipe, round: int, routed: Sequence[str]) -> list[TrainNode]:
    def node(name: str, tasks: tuple[str, ...]) -> TrainNode:
        adaptation = for_tasks(recipe.adapter_of(step), list(dict.fromkeys([*routed, *tasks])))
        return TrainNode(name, step, step.model, tasks, adaptation, round, prompt_nodes(step, tasks, recipe))

    if step.tasks == "each":
        return [node(f"{name}.{task}", (task,)) for task in recipe.training_tasks]
    return [node(name, recipe.training_tasks if step.tasks == "all" else step.tasks)]


def estimator_nodes(name: str, step: EstimatorStep, recipe: Recipe) -> list[EstimatorNode]:
    """Return the nodes of a step with an estimator: one, or one per training task."""
    if step.tasks == "each":
        return [EstimatorNode(f"{name}.{task}", step, (task,)) for task in recipe.training_tasks]
    return [EstimatorNode(name, step, recipe.training_tasks if step.tasks == "all" else step.tasks)]


def _asked(node: EstimatorNode, recipe: Recipe) -> tuple[str, ...]:
    """Return the tasks that an estimator is scored on: its own, and held-out ones where all tasks share one answer."""
    shares = node.step.estimator == "rmtgb" and node.step.tasks != "each"
    return node.tasks + tuple(name for name, task in recipe.tasks.items() if task.held_out and shares)


def _order(reads: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return step names, each after the steps whose models it reads, otherwise as the recipe lists them."""
    order: list[str] = []
    waiting = list(reads)
    while waiting:
        ready = next((name for name in waiting if not set(reads[name]) & set(waiting)), None)
        if ready is None:
            raise _cycle(reads, waiting)
        waiting.remove(ready)
        order.append(ready)
    return order


def _cycle(reads: Mapping[str, tuple[str, ...]], waiting: Sequence[str]) -> MultituneError:
    """Follow the steps from one that can never start until one of them comes again."""
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in reads[path[-1]] if name in waiting))
    cycle = path[path.index(path[-1]) :]
    return MultituneError(
        f"The steps {' -> '.join(cycle)} wait for one another.",
        f"steps.{cycle[0]}.model",
        "Let one of them start from base.",
    )
