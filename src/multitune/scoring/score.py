"""Scores a model on tasks: label and choose by choices, generate by generation, everything on encoders by heads."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from multitune.errors import MultituneError
from multitune.scoring.in_context.demonstrations import Demonstrations
from multitune.scoring.in_context.packing import digest_of, with_demonstrations
from multitune.scoring.normalisations import Normalisation
from multitune.scoring.predictions import Prediction, write_predictions
from multitune.scoring.rows import sample
from multitune.tasks.task import Split

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.tasks.prompting import TemplatePolicy
    from multitune.tasks.task import Prompted, Task

logger = logging.getLogger("multitune.scoring")

Progress = Callable[[str, int, int], None]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class ScoreConfig(BaseModel):
    """How models are scored.

    Attributes:
        rows: at most so many examples per task, the same ones for every model, seed and run; None scores all.
        split: which examples are scored; a task without this split is scored on its validation split.
        templates: "first" asks every example through the task's first template, "all" through each, "each" likewise
            with a score of every template beside that over all of them.
        batch_tokens: tokens of a batch, padding included; memory grows with it.
        shots: so many solved rows stand before every question, as far as they fit the model's positions.
        demonstrations: how they are drawn and written.
        choice_normalisation: how choices are compared, see ``scoring.normalisations``: by their log-probability
            ("none"), by that per "token", "character" or "byte", or by what the context adds ("unconditional").
        all_normalisations: the scores under every other normalisation are reported too, of the same pass.
        answer_context: what "unconditional" holds a choice against.
        soft_prompt: which tasks read one, of a model that keeps prompts, see ``models.tuners.task_ids.read_prompt_of``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int | None = Field(default=None, ge=1)
    split: Split = "test"
    templates: Literal["first", "all", "each"] = "first"
    batch_tokens: int = Field(default=4096, ge=1)
    shots: int = Field(default=0, ge=0)
    demonstrations: Demonstrations = Demonstrations()
    choice_normalisation: Normalisation = "none"
    all_normalisations: bool = False
    answer_context: str = "Answer:"
    soft_prompt: Literal["own", "off", "always"] = Field(
        default="own",
        description="of a model that keeps prompts of tasks: each task reads its own, or none; off: none; "
        "always: tasks without one read the only one",
    )

    @property
    def template_policy(self) -> TemplatePolicy:
        """Through which templates an example is asked."""
        return "first" if self.templates == "first" else "all"


@dataclass(frozen=True)
class TaskScore:
    """How well a model does one task.

    Attributes:
        task, split: what was scored.
        n: scored answers: examples, times templates where all are asked.
        metrics: value by the metric's name.
        intervals: 95 % bootstrap interval of every metric over examples.
        predictions: every answer, in the order of the data.
        unparsed: answers without a number where one was asked for (regress on a language model); they count as 0.
        shots: demonstrations before a question that were asked for.
        shots_used: how many stood there, in the mean over questions.
        draw_seed: of the demonstrations.
        prompts: digest of what was asked, see ``in_context.packing``; "" where no language model answered.
        normalisation: under which choices were compared; "" where nothing was chosen.
        template: whose answers these are: its name, or its number from 1; "" of a score over all that were asked.
        others: the same answers' scores under the other normalisations and of every template, where asked for.
    """

    task: str
    split: str
    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    predictions: list[Prediction] = field(repr=False)
    unparsed: int = 0
    shots: int = 0
    shots_used: float = 0.0
    draw_seed: int = 0
    prompts: str = ""
    normalisation: str = ""
    template: str = ""
    others: tuple[TaskScore, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Answers:
    """A model's answers: as metrics take them (index, text or number), and how many held no number.

    ``by_normalisation`` holds those of choices under every normalisation asked for, the first being ``values``.
    """

    values: list[Any]
    unparsed: int = 0
    by_normalisation: Mapping[Normalisation, list[int]] = field(default_factory=dict)


def score_tasks(
    backbone: Backbone,
    tasks: Sequence[Task],
    folder: Path,
    config: ScoreConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> list[TaskScore]:
    """Return the scores of a model on every task, in the order of the tasks.

    Args:
        folder: what the tasks' paths are relative to.
        seed: of the intervals' resampling; the scores themselves do not depend on it.
        progress: called with (task, examples done, examples in all) after every batch.

    Raises:
        MultituneError: a task has neither the split nor a validation split, or no rows in it; a task of a kind that the
            backbone cannot answer.
    """
    return [_score_task(backbone, task, folder, config, seed, progress) for task in tasks]


def scored_split(task: Task, preferred: Split) -> Split | None:
    """Return the split a task is scored on: the preferred one, else validation, else None."""
    if task.source(preferred) is not None:
        return preferred
    return "validation" if task.validation is not None else None


def save_predictions(scores: Iterable[TaskScore], folder: Path) -> list[Path]:
    """Write every task's predictions to ``folder/<task>.jsonl`` and return the files."""
    written = []
    for score in scores:
        path = folder / f"{score.task}.jsonl"
        write_predictions(path, score.predictions)
        written.append(path)
    return written


def _score_task(
    backbone: Backbone, task: Task, folder: Path, config: ScoreConfig, seed: int, progress: Progress | None
) -> TaskScore:
    split, rows = scored_rows(task, folder, config)
    report = None if progress is None else lambda done, total: progress(task.name, done, total)
    packed = with_demonstrations(backbone, task, rows, folder, config)
    answers = answers_of(backbone, task, packed.rows, config, report)
    if answers.unparsed:
        logger.warning("%s: %d of %d answers hold no number; they count as 0.", task.name, answers.unparsed, len(rows))
    by_normalisation: Mapping[Any, list[Any]] = answers.by_normalisation or {"": answers.values}
    everything = range(len(rows))
    asked = {"": everything, **(_by_template(task, rows) if config.templates == "each" else {})}
    first, *others = (
        replace(
            measure(
                task,
                split,
                [packed.rows[i] for i in places],
                Answers([values[i] for i in places], answers.unparsed if places is everything else 0),
                seed,
            ),
            normalisation=normalisation,
            template=template,
            shots=config.shots,
            shots_used=fmean(packed.used[i] for i in places),
            draw_seed=config.demonstrations.seed,
            prompts=packed.prompts if places is everything else digest_of([packed.rows[i] for i in places]),
        )
        for template, places in asked.items()
        for normalisation, values in by_normalisation.items()
    )
    return replace(first, others=tuple(others))


def _by_template(task: Task, rows: Sequence[Prompted]) -> dict[str, list[int]]:
    """Return the places of every template's rows, by the template's name."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(task.prompt_name(row.template), []).append(i)
    return dict(sorted(places.items(), key=lambda one: rows[one[1][0]].template))


def scored_rows(task: Task, folder: Path, config: ScoreConfig) -> tuple[Split, list[Prompted]]:
    """Return the split that a task is scored on, and its rows.

    Raises:
        MultituneError: the task has neither the split nor a validation split, or no rows in it.
    """
    from multitune.tasks.prompting import BadRows, prompted_examples

    split = scored_split(task, config.split)
    if split is None:
        raise MultituneError(
            f"Task '{task.name}' has no examples to score: neither {config.split} nor validation is given.",
            f"tasks.{task.name}.{config.split}",
            f"Give {config.split} a source, or cut it from train with {{fraction: 0.1}}.",
        )
    if split != config.split:
        logger.info("%s has no %s split: scored on %s.", task.name, config.split, split)
    bad_rows = BadRows()
    rows = sample(
        prompted_examples(task, split, folder, templates=config.template_policy, bad_rows=bad_rows), config.rows
    )
    if not rows:
        raise MultituneError(
            f"Task '{task.name}' has no rows in its {split} split.",
            f"tasks.{task.name}.{split}",
            "Give it a source with rows, or leave the task out.",
        )
    if bad_rows.count:
        logger.warning("%s: %d rows of the %s split were skipped.", task.name, bad_rows.count, split)
    return split, rows


def answers_of(
    backbone: Backbone,
    task: Task,
    rows: Sequence[Prompted],
    config: ScoreConfig,
    report: Callable[[int, int], None] | None = None,
) -> Answers:
    """Return a model's answers to prompted rows of a task, in their order.

    Raises:
        MultituneError: the model has no head for the task, or one for other choices; a row without choices.
    """
    from multitune.mixing.encoding import encode_prompts
    from multitune.models.tuners.task_ids import read_prompt_of, set_tasks

    set_tasks(backbone.model, [task.name])
    read_prompt_of(backbone.model, task.name, config.soft_prompt)
    prompts = encode_prompts(rows, backbone.tokenizer, backbone.form, task)
    if backbone.form == "encoder":
        from multitune.scoring.heads import head_of, head_predictions

        head_of(backbone, task.name, rows[0].choices if task.kind == "label" else ())
        answers = head_predictions(backbone, task.name, prompts, batch_tokens=config.batch_tokens, progress=report)
        return Answers(answers.tolist())
    if task.kind in ("label", "choose"):
        from multitune.scoring.choosing import chosen

        found = chosen(backbone, task, rows, prompts, config, report)
        return Answers(found[config.choice_normalisation], by_normalisation=found)
    texts = _write(backbone, task, prompts, config, report)
    if task.kind == "generate":
        return Answers(list(texts))
    numbers = [NUMBER.search(text) for text in texts]
    return Answers([float(found[0]) if found else 0.0 for found in numbers], sum(not found for found in numbers))


def _write(
    backbone: Backbone,
    task: Task,
    prompts: list[list[int]],
    config: ScoreConfig,
    report: Callable[[int, int], None] | None,
) -> list[str]:
    """Return what the model writes after every prompt, greedily, without white space around it."""
    from multitune.decoding.generate import generate

    texts = generate(
        backbone,
        prompts,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
        batch_tokens=config.batch_tokens,
        progress=report,
    )
    return [text.strip() for text in texts]


def measure(task: Task, split: Split, rows: Sequence[Prompted], answers: Answers, seed: int) -> TaskScore:
    """Return the metrics of a task's answers with their intervals, and one prediction per row."""
    from multitune.mixing.encoding import plain_prompt
    from multitune.scoring.intervals import interval_of_corpus_metric, interval_of_mean
    from multitune.tasks.metrics import metric, metrics_of

    references = [_reference(task, row) for row in rows]
    values, intervals, per_example = {}, {}, {}
    for name in metrics_of(task):
        found = metric(name)
        values[name] = float(found.score(answers.values, references))
        if found.per_example is None:
            intervals[name] = interval_of_corpus_metric(found.score, answers.values, references, seed=seed)
        else:
            per_example[name] = found.per_example(answers.values, references)
            intervals[name] = interval_of_mean(per_example[name], seed=seed)

    right = [
        answer in reference if isinstance(reference, tuple) else answer == reference
        for answer, reference in zip(answers.values, references, strict=True)
    ]
    score = next(iter(per_example.values()), right)
    correct: list[bool | None] = list(right)
    if task.kind == "regress":
        correct = [None] * len(rows)
    elif task.kind == "generate":
        correct = [bool(one) if one in (0.0, 1.0) else None for one in score]
    predictions = [
        Prediction(
            id=row.example.id,
            where=row.example.where,
            prompt=plain_prompt(row),
            prediction=shown(task, row, answer),
            reference=shown(task, row, reference),
            correct=is_correct,
            score=float(one),
        )
        for row, answer, reference, is_correct, one in zip(
            rows, answers.values, references, correct, score, strict=True
        )
    ]
    return TaskScore(task.name, split, len(rows), values, intervals, predictions, answers.unparsed)


def _reference(task: Task, row: Prompted) -> Any:
    """Return the right answer, or all of them, as metrics take them; texts end before a stop string, as answers do."""
    if task.kind in ("label", "choose"):
        return row.label
    if task.kind == "regress":
        return row.value
    texts = [row.target] if task.references is None else right_answers(row, task.references)
    if any(stop in text for stop in task.stop for text in texts):
        from multitune.decoding.generate import cut_at_stop

        texts = [cut_at_stop(text, task.stop) for text in texts]
    answers = tuple(text.strip() for text in texts)
    return answers[0] if task.references is None else answers


def right_answers(row: Prompted, field: str) -> list[str]:
    """Return all right answers of a row: those that a field lists, or its target where the row lacks the field.

    Raises:
        MultituneError: the field is no list of texts.
    """
    listed = row.example.fields.get(field)
    if listed is None:
        return [row.target]
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise MultituneError(
            f"The field '{field}' is no list of texts.", row.example.where, 'Give all right answers as ["a", "b"].'
        )
    return listed


def shown(task: Task, row: Prompted, answer: Any) -> str | float:
    """Return an answer as a reader wants it: a choice by its text."""
    if isinstance(answer, tuple):
        return " | ".join(answer)
    return row.choices[answer] if task.kind in ("label", "choose") else answer
