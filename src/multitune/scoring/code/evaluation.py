"""One model, one task, one way of asking: the answers to every row, ranked, and what they are worth.

The ways of asking: alone (a base as it is, or one that was tuned), behind the same random training examples for all
queries, or behind the training examples nearest to each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from multitune.errors import MultituneError
from multitune.scoring.code.nearest import Embed, nearest
from multitune.scoring.code.sandbox import Outcome
from multitune.scoring.in_context.demonstrations import Demonstrations, Pool, demonstrations_for

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.tasks.task import Prompted, Task

BETWEEN = "\n"
"""What stands after a demonstration, which is written as it is trained on."""

RANKS = (1, 2, 5, 10)
"""k of EM@k and pass@k, as far as there are so many answers."""


@dataclass(frozen=True)
class Mode:
    """How a model is asked.

    Attributes:
        way: zero-shot, icl (random demonstrations) or rag (the nearest ones).
        shots: demonstrations before a query.
        seed: of the random ones.
    """

    way: Literal["zero-shot", "icl", "rag"] = "zero-shot"
    shots: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """As the command line has it."""
        return self.way if self.way == "zero-shot" else f"{self.way}:{self.shots}"


ALONE = Mode()


@dataclass(frozen=True)
class Decoding:
    """How answers are written: all beams of a search, or samples; greedy by default.

    Attributes: see ``decoding.generate.generate_several``.
    """

    beams: int = 1
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_tokens: int = 4096


GREEDY = Decoding()


@dataclass(frozen=True)
class CodeAnswers:
    """What a model wrote to one row.

    Attributes:
        id, where: of the example.
        reference: what it should have written, up to the first stop string.
        answers: the best first, or in the order in which they were drawn; as written, up to the first stop string.
        left_out: demonstrations that did not fit.
        outcomes: how every answer's program ended; None where none was run.
        cases: the share of the row's test cases that every answer passes; None where the task has none.
        tokens: written, over all answers.
    """

    id: str
    where: str
    reference: str
    answers: tuple[str, ...]
    left_out: int = 0
    outcomes: tuple[Outcome, ...] | None = None
    cases: tuple[float, ...] | None = None
    tokens: int = 0


def mode_of(text: str, seed: int = 0) -> Mode:
    """Return the mode that a text names: "zero-shot", "icl:3" or "rag:3".

    Raises:
        MultituneError: it names none.
    """
    way, _, shots = text.partition(":")
    if text == "zero-shot":
        return ALONE
    if way == "icl" and shots.isdecimal():
        return Mode("icl", int(shots), seed)
    if way == "rag" and shots.isdecimal():
        return Mode("rag", int(shots))
    raise MultituneError(
        f"There is no mode '{text}'.", f"--mode {text}", "Use zero-shot, icl:N or rag:N, N the number of examples."
    )


def demonstrations(
    rows: Sequence[Prompted], store: Sequence[Prompted], mode: Mode, embed: Embed | None = None
) -> list[list[Prompted]]:
    """Return the demonstrations of every row, the nearest last; none of them asks what a row asks.

    Random ones are those of in-context evaluation with ``draw: fixed``.

    Raises:
        MultituneError: the store has not so many.
    """
    if mode.way == "zero-shot" or mode.shots == 0:
        return [[] for _ in rows]
    asked = {row.prompt for row in rows}
    store = [one for one in store if one.prompt not in asked]  # what is scored must not be shown with its answer
    if mode.shots > len(store):
        raise MultituneError(
            f"{mode.shots} demonstrations are asked for, and the training rows are {len(store)}.",
            f"mode {mode.name}",
            "Ask for fewer, or give the task more training rows.",
        )
    if mode.way == "icl":
        settings, pool = Demonstrations(draw="fixed", seed=mode.seed), Pool("", "train", {0: store})
        return [demonstrations_for(row, pool, mode.shots, settings) for row in rows]
    places = nearest([one.prompt for one in store], [row.prompt for row in rows], mode.shots, embed)
    return [[store[place] for place in of_row[::-1]] for of_row in places.tolist()]


def written(
    backbone: Backbone,
    task: Task,
    rows: Sequence[Prompted],
    shown: Sequence[Sequence[Prompted]],
    decoding: Decoding,
    progress: Callable[[int, int], None] | None = None,
) -> list[CodeAnswers]:
    """Return a model's answers to rows behind their demonstrations, not run.

    Raises:
        MultituneError: a query does not fit the model's positions; the model writes nothing.
    """
    from multitune.decoding.generate import cut_at_stop, generate_several
    from multitune.mixing.encoding import encode_prompts
    from multitune.models.tuners.task_ids import set_tasks
    from multitune.scoring.in_context.packing import fitting

    if task.kind != "generate" or backbone.form == "encoder":
        raise MultituneError(
            f"Task '{task.name}' of kind {task.kind} on a model of form {backbone.form} is not answered by writing.",
            f"tasks.{task.name}",
            "Name a task of kind generate and a model that writes.",
        )
    set_tasks(backbone.model, [task.name])
    asked, used = zip(*fitting(backbone, task, rows, shown, Demonstrations(separator=BETWEEN)), strict=True)
    texts = generate_several(
        backbone,
        encode_prompts(asked, backbone.tokenizer, backbone.form, task),
        beams=decoding.beams,
        samples=decoding.samples,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        batch_tokens=decoding.batch_tokens,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
        progress=progress,
    )
    tokens = backbone.tokenizer([text for some in texts for text in some], add_special_tokens=False)["input_ids"]
    lengths = iter([len(ids) for ids in tokens])
    return [
        CodeAnswers(
            row.example.id,
            row.example.where,
            trimmed(cut_at_stop(row.target, task.stop)),
            tuple(ranked),
            len(few) - kept,
            tokens=sum(next(lengths) for _ in ranked),
        )
        for row, ranked, few, kept in zip(rows, texts, shown, used, strict=True)
    ]


def trimmed(text: str) -> str:
    """Return code without empty lines around it; the indentation of its first line stays, which a body needs."""
    return text.strip("\n").rstrip()


def per_example(answers: Sequence[CodeAnswers], decoding: Decoding) -> dict[str, np.ndarray]:
    """Return the metrics that are means over examples, by name, float64 [N].

    ``em@k``; ``ast_match`` of the first answer; where answers were run, of samples the unbiased ``pass@k``; of beams,
    which are no independent draws, ``first@k``: whether one of the first k passes. Of rows with test cases an answer
    passes that passes all, and ``test_cases`` is the share that answers pass on average.
    """
    from multitune.tasks.python_source import same_code
    from multitune.tasks.ranked import exact_match_at, pass_at

    written_texts, references = [one.answers for one in answers], [one.reference for one in answers]
    most = min(map(len, written_texts))
    ranks = [k for k in RANKS if k <= most]
    values = {f"em@{k}": exact_match_at(k, written_texts, references) for k in ranks}
    first = [trimmed(one.answers[0]) for one in answers]
    values["ast_match"] = np.array([same_code(*pair) for pair in zip(first, references, strict=True)])
    if all(one.outcomes is not None for one in answers):
        passed = [[outcome.status == "passed" for outcome in one.outcomes or ()] for one in answers]
        for k in ranks:
            if decoding.beams > 1:
                values[f"first@{k}"] = np.array([any(one[:k]) for one in passed], dtype=np.float64)
            else:
                values[f"pass@{k}"] = np.array([pass_at(k, len(one), sum(one)) for one in passed])
    if all(one.cases for one in answers):
        values["test_cases"] = np.array([math.fsum(one.cases or ()) / len(one.cases or ()) for one in answers])
    return values


def measured(answers: Sequence[CodeAnswers], decoding: Decoding, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return every metric of a task's answers with the bounds of its 95 % interval: name -> value, low, high."""
    from multitune.scoring.intervals import interval_of_corpus_metric, interval_of_mean
    from multitune.tasks.metrics import metric

    found = {}
    for name, value_N in per_example(answers, decoding).items():
        low, high = interval_of_mean(value_N, seed=seed)
        found[name] = {"value": math.fsum(value_N) / len(value_N), "low": low, "high": high}
    codebleu = metric("codebleu").score
    first, references = [trimmed(one.answers[0]) for one in answers], [one.reference for one in answers]
    low, high = interval_of_corpus_metric(codebleu, first, references, seed=seed)
    found["codebleu"] = {"value": codebleu(first, references), "low": low, "high": high}
    return found


def endings(answers: Sequence[CodeAnswers]) -> Mapping[str, int]:
    """Return how often programs ended in every way; {} where none was run."""
    counts: dict[str, Any] = {}
    for outcome in (outcome for one in answers for outcome in one.outcomes or ()):
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return counts
