"""What a run has to do: every node of every variant once, with its folder and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multitune.recipes import fingerprint
from multitune.recipes.graph import EstimatorNode, FuseNode, MergeNode, Node, ScoreNode, TrainNode, build
from multitune.recipes.merge_search import searched_tasks
from multitune.recipes.node import Opened, scored_splits
from multitune.recipes.run_folder import RunFolder
from multitune.recipes.schema import BASE
from multitune.recipes.sweep import Variant


@dataclass(frozen=True)
class Work:
    """One node to be done.

    Attributes:
        key: names it in this run.
        label: as people are told of it: "joint", or "joint (seed=1)" where variants differ in it.
        node: of the graph.
        variant: index of the first variant that has it; it is done by this one's recipe.
        fingerprint: of its inputs.
        place: folder of its result.
        models: folder of every model that it reads, by name; None for the recipe's own.
        needs: keys of the work that leaves these models.
        users: every (variant's index, node) whose result this is.
    """

    key: str
    label: str
    node: Node
    variant: int
    fingerprint: str
    place: Path
    models: Mapping[str, Path | None]
    needs: tuple[str, ...]
    users: tuple[tuple[int, Node], ...]

    @property
    def variants(self) -> set[int]:
        """Indices of the variants that have it."""
        return {index for index, _ in self.users}


@dataclass
class _Node:
    """A node while its users are collected."""

    node: Node
    variant: int
    fingerprint: str
    reads: dict[str, str | None]
    users: list[tuple[int, Node]]


def lay_out(variants: Sequence[Variant], opened: Sequence[Opened], folder: Path, *, swept: bool) -> list[Work]:
    """Return the work of a run in an order in which it can be done: variant by variant, each after what it reads.

    In a sweep, nodes with equal fingerprints are one, in ``nodes/<fingerprint>``; in a plain run every node has a
    folder of its own, ``steps/<node>``.

    Args:
        variants: of the sweep; of a plain run its recipe alone.
        opened: their recipes, in the same order.
        folder: of the run.
        swept: whether nodes are shared.

    Raises:
        MultituneError: data or a model that cannot be read.
    """
    found: dict[str, _Node] = {}
    bases: dict[str, str] = {}
    for index, one in enumerate(opened):
        model = one.recipe.model
        written = model.model_dump_json() if model is not None else ""
        if model is None:
            bases[written] = fingerprint.baseline_fingerprint(one.recipe)
        elif written not in bases:
            bases[written] = fingerprint.model_fingerprint(one.recipe)
        inputs = {BASE: bases[written]}
        keys: dict[str, str] = {}
        for node in build(one.recipe):
            digest = _fingerprint(node, one, inputs)
            key = keys[node.name] = digest if swept else node.name
            if not isinstance(node, ScoreNode):
                inputs[node.name] = digest
            reads = {name: keys.get(name) for name in node.reads}
            entry = found.setdefault(key, _Node(node, index, digest, reads, []))
            entry.users.append((index, node))
    places = {
        key: node_folder(folder, node.fingerprint) if swept else RunFolder(folder).node(node.node.name)
        for key, node in found.items()
    }
    return [
        Work(
            key=key,
            label=node.node.name + told_of(variants, [index for index, _ in node.users]),
            node=node.node,
            variant=node.variant,
            fingerprint=node.fingerprint,
            place=places[key],
            models={name: places[read] / "model" if read else None for name, read in node.reads.items()},
            needs=tuple(read for read in node.reads.values() if read),
            users=tuple(node.users),
        )
        for key, node in found.items()
    ]


def node_folder(folder: Path, digest: str) -> Path:
    """Return the folder of a shared node; 16 hexadecimal digits tell any two nodes of a sweep apart."""
    return folder / "nodes" / digest[:16]


def told_of(variants: Sequence[Variant], users: Sequence[int]) -> str:
    """Return " (seed=1,mixture=equal)": the axis values that all users share and other variants do not; or ""."""
    shared = []
    axes: Mapping[str, str] = variants[0].values
    for axis in axes:
        values = {variants[i].values[axis] for i in users}
        if len(values) == 1 and len({variant.values[axis] for variant in variants}) > 1:
            shared.append(f"{axis}={values.pop()}")
    return f" ({','.join(shared)})" if shared else ""


def _fingerprint(node: Node, opened: Opened, models: Mapping[str, str]) -> str:
    if isinstance(node, TrainNode):
        return fingerprint.train_fingerprint(node, opened.recipe, models)
    if isinstance(node, EstimatorNode):
        return fingerprint.estimator_fingerprint(node, opened.recipe)
    if isinstance(node, FuseNode):
        return fingerprint.fuse_fingerprint(node, models)
    if isinstance(node, MergeNode):
        searched = opened.tasks(searched_tasks(node.step, opened.recipe))
        return fingerprint.merge_fingerprint(node, opened.recipe, searched, models)
    tasks, splits = opened.tasks(node.tasks), scored_splits(node, opened.recipe)
    return fingerprint.score_fingerprint(node, opened.recipe, tasks, models[node.model], splits)
