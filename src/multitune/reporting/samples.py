"""Chooses the rows that a report shows: what was learned, what was forgotten, what is still wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multitune.reporting.comparison import Table, is_alone, node_of
from multitune.reporting.run_folder import BASE, Run, read_predictions
from multitune.scoring.predictions import Prediction

PER_KIND = 2
LONGEST = 1500  # characters of a prompt or an answer; the rest is in the predictions file


@dataclass(frozen=True)
class Sample:
    """One row: its prompt, the wanted answer, and what the model said before and after."""

    kind: str
    where: str
    prompt: str
    reference: str
    before: str | None
    after: str


@dataclass(frozen=True)
class TaskSamples:
    """The chosen rows of one task, and how many rows there are of each kind."""

    task: str
    arm: str
    counts: dict[str, int]
    samples: tuple[Sample, ...]


JUDGED = ("learned", "forgotten", "still wrong", "right")
SCORED = ("highest score", "lowest score")


def pick_samples(run: Run, tables: Sequence[Table]) -> list[TaskSamples]:
    """Return up to two rows per kind and task, the first ones in the predictions of the last joint arm."""
    arms = [arm for table in tables for arm in table.arms]
    joint = [arm for arm in dict.fromkeys(arms) if arm != BASE and not is_alone(run, arm)]
    arm = joint[-1] if joint else arms[-1]
    chosen = [_of_task(run, arm, row.task) for table in tables for row in table.rows]
    return [task for task in chosen if task.samples]


def _of_task(run: Run, arm: str, task: str) -> TaskSamples:
    earlier = {one.id: one for one in read_predictions(run, BASE, task)} if arm != BASE else {}
    answers = read_predictions(run, node_of(run, arm, task), task)
    judged = any(one.correct is not None for one in answers)
    by_kind = _by_verdict(earlier, answers) if judged else _by_score(answers)
    return TaskSamples(
        task=task,
        arm=arm,
        counts={kind: len(members) for kind, members in by_kind.items()} if judged else {},
        samples=tuple(
            _sample(kind, earlier.get(one.id), one) for kind, members in by_kind.items() for one in members[:PER_KIND]
        ),
    )


def _by_verdict(earlier: dict[str, Prediction], answers: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Return the answers sorted by what became of them between the base and this arm."""
    by_kind: dict[str, list[Prediction]] = {kind: [] for kind in JUDGED}
    for answer in answers:
        before = earlier.get(answer.id)
        right_before = bool(before is not None and before.correct)
        if answer.correct:
            by_kind["learned" if before is not None and not right_before else "right"].append(answer)
        else:
            by_kind["forgotten" if right_before else "still wrong"].append(answer)
    return by_kind


def _by_score(answers: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Return answers that have a score but are neither right nor wrong, from both ends."""
    ordered = sorted(answers, key=lambda answer: -answer.score)
    return dict(zip(SCORED, (ordered, ordered[: PER_KIND - 1 : -1]), strict=True))


def _sample(kind: str, before: Prediction | None, after: Prediction) -> Sample:
    return Sample(
        kind=kind,
        where=after.where,
        prompt=_cut(after.prompt),
        reference=_cut(after.reference),
        before=None if before is None else _cut(before.prediction),
        after=_cut(after.prediction),
    )


def _cut(value: str | float) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [... {len(text) - LONGEST:,} more characters]"
