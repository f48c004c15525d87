"""Scores across languages and prompts: how sensitive a model is to the wording, and whether it carries over.

    v_dlp = score of data set d in language l under prompt p
    median_dl = median_p v_dlp,   best_dl = max_p v_dlp,   spread_dl = standard deviation over p
    median_d = mean_l median_dl,  best_d = mean_l best_dl

Languages that a model has seen and those that it has not are averaged apart (Muennighoff et al. 2023,
arXiv:2211.01786).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Seen = Literal["seen", "unseen", ""]
"""Whether a model has read a language, in pre-training or since; "" where nobody says."""

GROUPS: tuple[Seen, ...] = ("seen", "unseen", "")


@dataclass(frozen=True)
class OverPrompts:
    """A task's scores under its prompts.

    Attributes:
        prompts: how many.
        median: of an even number the mean of the two in the middle.
        best: the highest; the lowest of a metric that is an error.
        spread: standard deviation over prompts (divisor: prompts minus one); None of a single one.
    """

    prompts: int
    median: float
    best: float
    spread: float | None


@dataclass(frozen=True)
class Place:
    """Where a task stands in the grid of data sets and languages: its data set, "" for the task's own, and language."""

    dataset: str
    language: str


@dataclass(frozen=True)
class LanguageCell:
    """One data set in one language."""

    dataset: str
    metric: str
    language: str
    seen: Seen
    task: str
    n: int
    scores: OverPrompts


@dataclass(frozen=True)
class LanguageMean:
    """One data set over the languages of a group: ``seen`` "all" for every language."""

    dataset: str
    metric: str
    seen: Literal["all", "seen", "unseen"]
    languages: tuple[str, ...]
    median: float
    best: float


def over_prompts(values: Sequence[float], *, higher_is_better: bool = True) -> OverPrompts:
    """Return the median, best and spread of one task's scores under its prompts, at least one."""
    return OverPrompts(
        prompts=len(values),
        median=statistics.median(values),
        best=max(values) if higher_is_better else min(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
    )


def place_of(task: str, tags: Mapping[str, str]) -> Place | None:
    """Return a task's place by its tags ``language`` and ``dataset``; None where it has no language."""
    return Place(tags.get("dataset", task), tags["language"]) if tags.get("language") else None


def seen_by_tag(tags: Mapping[str, str]) -> Seen:
    """Return what the tag ``seen`` says of a task's language: "yes" or "no"."""
    return {"yes": "seen", "no": "unseen"}.get(tags.get("seen", ""), "")  # type: ignore[return-value]


def languages_seen(tags_by_task: Mapping[str, Mapping[str, str]], trained: Iterable[str]) -> dict[str, Seen]:
    """Return for every language whether a model has read it.

    A language is seen where a task in it was trained on, whatever tags say: unseen means absent from pre-training and
    from fine-tuning. Otherwise the tag ``seen`` decides, of which one "yes" is enough.

    Args:
        tags_by_task: the tags of every task.
        trained: names of the tasks that the model was trained on.
    """
    told: dict[str, set[Seen]] = {}
    learned = set(trained)
    for task, tags in tags_by_task.items():
        if language := tags.get("language"):
            told.setdefault(language, set()).add("seen" if task in learned else seen_by_tag(tags))
    return {language: next(group for group in GROUPS if group in found) for language, found in told.items()}


def language_cells(
    rows: Iterable[Mapping[str, Any]], places: Mapping[str, Place], seen: Mapping[str, Seen]
) -> list[LanguageCell]:
    """Return one cell per task and metric, in the order of data sets and then of languages as they first come.

    Args:
        rows: of one model, one split and one number of shots, with the scoreboard's keys; a task has one row per
            prompt and metric, or one in all where prompts were not told apart.
        places: of the tasks that are to stand in the table.
        seen: by language.
    """
    from multitune.tasks.metrics import metric as find_metric

    values: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["task"] in places:
            values.setdefault((row["task"], row["metric"]), []).append(row)
    cells = [
        LanguageCell(
            places[task].dataset, metric, places[task].language, seen.get(places[task].language, ""), task,
            max(int(row["n"]) for row in own),
            over_prompts([row["value"] for row in own], higher_is_better=find_metric(metric).higher_is_better),
        )
        for (task, metric), own in values.items()
    ]  # fmt: skip
    datasets = list(dict.fromkeys((cell.dataset, cell.metric) for cell in cells))
    languages = list(dict.fromkeys(cell.language for cell in cells))
    return sorted(cells, key=lambda cell: (datasets.index((cell.dataset, cell.metric)), languages.index(cell.language)))


def language_means(cells: Sequence[LanguageCell]) -> list[LanguageMean]:
    """Return every data set's mean over all its languages, then over seen and over unseen ones where there are any.

    A mean of medians, not of everything: a language counts once, however many prompts it was asked through.
    """
    means = []
    for dataset, metric in dict.fromkeys((cell.dataset, cell.metric) for cell in cells):
        own = [cell for cell in cells if (cell.dataset, cell.metric) == (dataset, metric)]
        groups: tuple[Literal["all", "seen", "unseen"], ...] = ("all", "seen", "unseen")
        for group in groups:
            members = [cell for cell in own if group in ("all", cell.seen)]
            if members:
                means.append(
                    LanguageMean(
                        dataset, metric, group, tuple(cell.language for cell in members),
                        statistics.fmean(cell.scores.median for cell in members),
                        statistics.fmean(cell.scores.best for cell in members),
                    )
                )  # fmt: skip
    return means
