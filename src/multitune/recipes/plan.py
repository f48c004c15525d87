"""The plan before the bill: what a recipe will read, train and cost, without loading weights.

Rows are counted by streaming through every source; token statistics come from at most SAMPLED rows per task, spread
evenly over the source by a digest of their ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from multitune.recipes.forecast import forecast_memory, forecast_seconds, passes_per_step
from multitune.recipes.fuse_plan import FuseNodePlan, plan_fusions
from multitune.recipes.graph import TrainNode, build, refuse_rows_longer_than
from multitune.recipes.merge_plan import MergeNodePlan, plan_merges
from multitune.recipes.schema import BASE, Recipe
from multitune.recipes.simulation import simulate
from multitune.recipes.soft_prompts import prompt_numbers
from multitune.recipes.table_plan import TableNodePlan, plan_tables
from multitune.tasks.overlap import overlap_warnings
from multitune.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np

    from multitune.models.loading import ModelFacts
    from multitune.objectives.balancing.config import BalancerConfig
    from multitune.tasks.task import Prompted

SAMPLED = 2000
"""Rows per task that are tokenised for the plan."""

MOSTLY_UNSEEN, OFTEN_REPEATED = 0.5, 4.0
"""Warn when less than this share of a task's rows is used, or its rows are seen more often than this on average."""


@dataclass(frozen=True)
class TaskStatistics:
    """Token statistics of one task's training rows.

    Attributes:
        task: name.
        rows: usable rows; exact.
        bad_rows: rows left out as unusable.
        lengths, label_counts: tokens and tokens that carry loss of the sampled rows, int [sampled].
        truncated, dropped: of the sampled rows, those that are cut or left out.
        sample: one example as (text of a token, whether it carries loss).
    """

    task: str
    rows: int
    bad_rows: int
    lengths: np.ndarray = field(repr=False)
    label_counts: np.ndarray = field(repr=False)
    truncated: int
    dropped: int
    sample: list[tuple[str, bool]] = field(repr=False)

    @property
    def estimated(self) -> bool:
        """Whether token counts are an estimate from a sample."""
        return len(self.lengths) + self.dropped < self.rows


@dataclass(frozen=True)
class TaskInPlan:
    """What one train node will do with one task.

    Attributes:
        rows, unique_rows, repeats: rows there are, rows that will be seen, mean times each of these is seen.
        tokens: tokens that will be read, repeats included.
        loss_share: share of these tokens that carry loss.
        truncated: rows that are cut to max_length (scaled up when estimated).
        sampling_share: share of the examples.
        effective_share: share of the loss that sampling, task weights and normaliser give together.
    """

    task: str
    rows: int
    unique_rows: int
    repeats: float
    tokens: int
    loss_share: float
    truncated: int
    dropped: int
    bad_rows: int
    estimated: bool
    sampling_share: float
    effective_share: float


@dataclass(frozen=True)
class NodePlan:
    """What one train node will do.

    Attributes:
        name, model, method: the node, what it starts from, the adaptation.
        steps: optimiser steps.
        form: of the model, see ``ModelConfig``.
        fill: share of the positions that hold tokens.
        parameters, trainable: of the model; trainable is None when only the weights can tell.
        memory_bytes: forecast of the peak, see ``forecast_memory``.
        seconds: forecast of the training time on this machine, see ``forecast_seconds``.
        tasks, warnings: per task, and what deserves a second look.
    """

    name: str
    model: str
    method: str
    steps: int
    form: str
    fill: float
    parameters: int
    trainable: int | None
    memory_bytes: int
    seconds: float
    tasks: list[TaskInPlan]
    warnings: list[str]


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe: train nodes, a sample with its loss mask per task, merges, fusions and estimators."""

    recipe: str
    nodes: list[NodePlan]
    samples: dict[str, list[tuple[str, bool]]]
    merges: list[MergeNodePlan] = field(default_factory=list)
    fusions: list[FuseNodePlan] = field(default_factory=list)
    tables: list[TableNodePlan] = field(default_factory=list)


def plan(recipe: Recipe) -> Plan:
    """Compute the plan of a checked recipe.

    Raises:
        MultituneError: rows that are refused, an empty task, a model that cannot be found.
    """
    trained = [(node.name, node, recipe) for node in build(recipe) if isinstance(node, TrainNode)]
    return Plan(recipe.name, *plan_nodes(trained), plan_merges(recipe), plan_fusions(recipe), plan_tables(recipe))


def plan_nodes(
    trained: Iterable[tuple[str, TrainNode, Recipe]], resolved: Mapping[str, Task] | None = None
) -> tuple[list[NodePlan], dict[str, list[tuple[str, bool]]]]:
    """Return the plans of train nodes, and one example per task; data that several share are read once.

    Args:
        trained: (name in the plan, node, its recipe).
        resolved: tasks that were read already, by the task as written.
    """
    from multitune.models.pretrained import load_tokenizer, model_facts
    from multitune.tasks.prompting import resolve

    models: dict[str, tuple[ModelFacts, Any]] = {}
    settled = dict(resolved or {})
    known: dict[tuple[str, str, int], TaskStatistics] = {}
    leaked: dict[str, list[str]] = {}
    nodes = []
    for label, node, recipe in trained:
        model = recipe.base.model_dump_json()
        if model not in models:
            models[model] = model_facts(recipe.base), load_tokenizer(recipe.base)
        facts, tokenizer = models[model]
        refuse_rows_longer_than(facts.max_positions, node)
        length = node.step.training.max_length
        keys = [recipe.tasks[name].model_dump_json() for name in node.tasks]
        for key, name in zip(keys, node.tasks, strict=True):
            if key not in settled:
                settled[key] = resolve(recipe.tasks[name], recipe.folder)
            if key not in leaked:
                leaked[key] = list(overlap_warnings(settled[key], recipe.folder))
            if (key, model, length) not in known:
                known[key, model, length] = statistics(settled[key], recipe, tokenizer, facts, length)
        found = [known[key, model, length] for key in keys]
        planned = _plan_node(node, recipe, facts, [settled[key] for key in keys], found)
        seen = [warning for key in keys for warning in leaked[key]]
        nodes.append(replace(planned, name=label, warnings=[*planned.warnings, *seen]))
    return nodes, {found.task: found.sample for found in known.values()}


def statistics(task: Task, recipe: Recipe, tokenizer: Any, facts: ModelFacts, max_length: int) -> TaskStatistics:
    """Count a task's rows by streaming through them and tokenise a sample; constant memory."""
    import numpy as np

    from multitune.mixing.encoding import encode_all, prompt_affixes
    from multitune.mixing.training_demonstrations import TrainingDemonstrations
    from multitune.mixing.truncation import truncate
    from multitune.tasks.bad_rows import BadRows
    from multitune.tasks.prompting import prompted_examples

    bad_rows = BadRows()
    examples = prompted_examples(task, "train", recipe.folder, templates="rotate", bad_rows=bad_rows)
    rows, sampled = _sample(examples)
    if task.train_shots:
        shown = TrainingDemonstrations(task, recipe.folder)
        sampled = shown.before(sampled, tokenizer, facts.form, max_length)
    affixes = prompt_affixes(tokenizer, facts.form)
    lengths, label_counts, truncated, dropped = [], [], 0, 0
    sample: list[tuple[str, bool]] = []
    for prompted, (ids, labels) in zip(sampled, encode_all(sampled, tokenizer, facts.form, task.chat), strict=True):
        too_long = max(len(ids), len(labels)) > max_length
        if too_long:
            ids, labels = truncate(ids, labels, facts.form, max_length, affixes)
        labelled = sum(label != -100 for label in labels)
        if facts.form != "encoder" and not labelled:
            dropped += 1
            continue
        truncated += too_long
        lengths.append(len(ids))
        label_counts.append(labelled if facts.form != "encoder" else 1)
        if not sample:
            sample = _shown(ids, labels, tokenizer, facts.form, prompted)
    return TaskStatistics(
        task.name, rows, bad_rows.count, np.array(lengths), np.array(label_counts), truncated, dropped, sample
    )


def _sample(examples: Iterator[Prompted]) -> tuple[int, list[Prompted]]:
    """Return the number of examples and those SAMPLED whose ids have the smallest digests."""
    rows = 0
    kept: list[tuple[bytes, int, Prompted]] = []  # a heap of the largest kept digest first, through inversion
    for prompted in examples:
        digest = bytes(255 - byte for byte in blake2b(prompted.example.id.encode(), digest_size=8).digest())
        if len(kept) < SAMPLED:
            heapq.heappush(kept, (digest, rows, prompted))
        elif digest > kept[0][0]:
            heapq.heapreplace(kept, (digest, rows, prompted))
        rows += 1
    return rows, [prompted for _, _, prompted in sorted(kept, key=lambda entry: entry[1])]


def _shown(
    ids: Sequence[int], labels: Sequence[int], tokenizer: Any, form: str, prompted: Prompted
) -> list[tuple[str, bool]]:
    if form == "encoder":  # a head answers behind the last token
        answer = prompted.target if prompted.value is None else f"{prompted.value:g}"
        return [*((text, False) for text in _pieces(ids, tokenizer)), (f" → {answer}", True)]
    if form == "causal":
        return [(text, label != -100) for text, label in zip(_pieces(ids, tokenizer), labels, strict=True)]
    inputs, targets = _pieces(ids, tokenizer), _pieces(labels, tokenizer)
    return [*((text, False) for text in inputs), *((text, True) for text in targets)]


def _pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of every token, such that the pieces in a row read as the whole does.

    SentencePiece drops the space of a first word, WordPiece joins what has no space before it, and a byte-level token
    may hold part of a character: a token is read together with the one before it, and a character goes to the token
    that completes it.
    """
    pieces: list[str] = []
    start, told = 0, 0  # the window's first token, and the first whose text is still to come
    for end in range(1, len(ids) + 1):
        before, text = (
            tokenizer.decode(list(ids[start:stop]), clean_up_tokenization_spaces=False) for stop in (told, end)
        )
        if text.endswith("\ufffd") and end < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        start, told = told, end
    return pieces


def _plan_node(
    node: TrainNode, recipe: Recipe, facts: ModelFacts, tasks: Sequence[Task], found: Sequence[TaskStatistics]
) -> NodePlan:
    from multitune.adaptation.adapting import trainable_parameters
    from multitune.models.loading import rounds_of

    config = node.step.training
    simulation = simulate(node, recipe, facts, tasks, found)
    encoded = tasks if facts.form == "encoder" else ()
    trainable = trainable_parameters(
        facts, node.adaptation, encoded, seed=recipe.seed, round=rounds_of(recipe.base) + node.round
    )
    prompt = prompt_numbers(node, recipe, facts.hidden_size)
    trainable = trainable + prompt if trainable is not None and prompt is not None else None
    positions = simulation.positions
    balancer = config.balancer if len(tasks) > 1 else None  # a task alone is not balanced
    apart = len(tasks) if balancer is not None and balancer.needs_gradients else 0
    in_plan = []
    for i, (statistics_, drawn) in enumerate(zip(found, simulation.mixture, strict=True)):
        kept = max(1, len(statistics_.lengths))
        mean_length, mean_labels = statistics_.lengths.mean(), statistics_.label_counts.mean()
        scale = statistics_.rows / (kept + statistics_.dropped)
        in_plan.append(
            TaskInPlan(
                task=statistics_.task,
                rows=statistics_.rows,
                unique_rows=drawn.unique,
                repeats=drawn.mean_repeats,
                tokens=round(drawn.draws * mean_length),
                loss_share=float(mean_labels / mean_length) if facts.form == "causal" else 1.0,
                truncated=round(statistics_.truncated * scale),
                dropped=round(statistics_.dropped * scale),
                bad_rows=statistics_.bad_rows,
                estimated=statistics_.estimated,
                sampling_share=drawn.share,
                effective_share=float(simulation.effective_T[i]),
            )
        )
    return NodePlan(
        name=node.name,
        model=recipe.base.name if node.model == BASE else node.model,
        method=node.adaptation.method,
        steps=simulation.steps,
        form=facts.form,
        fill=simulation.fill,
        parameters=facts.parameters,
        trainable=trainable,
        memory_bytes=forecast_memory(facts, trainable, config.rows_per_forward * config.max_length, apart),
        seconds=forecast_seconds(
            facts, trainable, positions, passes_per_step(config, len(tasks), node.adaptation.passes)
        ),
        tasks=in_plan,
        warnings=[*simulation.warnings, *_warnings(in_plan), *_warm_up(balancer, simulation.steps)],
    )


def _warm_up(balancer: BalancerConfig | None, steps: int) -> Iterator[str]:
    if balancer is not None and balancer.method == "coba" and balancer.warmup_steps >= steps:
        yield f"CoBa weighs uniformly for {balancer.warmup_steps:,} warmup_steps; the training has {steps:,}."


def _warnings(tasks: Sequence[TaskInPlan]) -> Iterator[str]:
    for task in tasks:
        if task.unique_rows < MOSTLY_UNSEEN * task.rows:
            yield f"{task.task}: {task.rows - task.unique_rows:,} of {task.rows:,} rows would never be seen."
        if task.repeats > OFTEN_REPEATED:
            yield f"{task.task}: its rows would be seen {task.repeats:.1f} times on average."
        if task.truncated > 0.05 * task.rows:
            yield f"{task.task}: {task.truncated:,} of {task.rows:,} rows would be cut to max_length."
