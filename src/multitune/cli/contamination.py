"""`multitune contamination`: which test rows stand in a training text, and what that makes of the scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from multitune.cli.run import Json

if TYPE_CHECKING:
    from multitune.recipes.contamination import PairOverlap
    from multitune.scoring.in_context.contamination import Contamination


def contamination(
    tasks: Annotated[
        Path, typer.Option("--tasks", help="A recipe or suite file; the rows of its tasks are looked for.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Training text: files or folders, several times. Without it the tasks' own rows."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="What `score --out` wrote, to split the scores by.")
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, help="Flag a clean score that is lower by more than this.")
    ] = 0.02,
    fewest: Annotated[
        int, typer.Option("--fewest", min=1, max=13, help="The smallest N, in words; less than 8 for short tasks.")
    ] = 8,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="By pairs: which task's training rows hold which task's scored rows.")
    ] = False,
    above: Annotated[
        float, typer.Option("--above", min=0.0, max=1.0, help="With --pairs, show those that share more than this.")
    ] = 0.01,
    json: Json = False,
) -> None:
    """Look for the test rows of tasks in a training text, by N words in a row."""
    from multitune.cli.output import answer_json, speak
    from multitune.errors import MultituneError
    from multitune.recipes.contamination import scan, scan_pairs

    speak()
    if split not in ("test", "validation"):
        raise MultituneError(f"There is no split '{split}' to look for.", "--split", "Use test or validation.")
    chosen = cast(Literal["test", "validation"], split)
    if pairs:
        if text or predictions:
            raise MultituneError(
                "Pairs are of the file's own tasks: --text and --predictions have no part in them.",
                "--pairs",
                "Leave them out, or leave --pairs out.",
            )
        _answer_pairs(scan_pairs(tasks, split=chosen, fewest=fewest), above, json=json)
        return
    found = scan(
        tasks,
        text or [],
        split=chosen,
        predictions=predictions,
        threshold=threshold,
        fewest=fewest,
    )
    if json:
        answer_json({"tasks": [_told(one) for one in found]})
    else:
        _print(found)


def _answer_pairs(pairs: list[PairOverlap], above: float, *, json: bool) -> None:
    """Print the pairs that share more than so much, or all that share anything as JSON."""
    from dataclasses import asdict

    from rich.table import Table

    from multitune.cli.output import answer_json, stdout_console

    if json:
        answer_json({"pairs": [asdict(pair) | {"share": pair.share} for pair in pairs if pair.dirty]})
        return
    shown = [pair for pair in pairs if pair.share > above]
    table = Table(box=None, padding=(0, 1))
    for name in ("trained on", "scored", "split"):
        table.add_column(name)
    for name in ("rows", "seen", "seen %"):
        table.add_column(name, justify="right")
    for pair in shown:
        table.add_row(
            pair.trained, pair.scored, pair.split, f"{pair.n:,}", f"{pair.dirty:,}", f"{100 * pair.share:.1f}"
        )
    console = stdout_console()
    if shown:
        console.print(table)
    for pair in shown:
        if pair.example is not None:
            id, where, words = pair.example
            console.print(f"{pair.scored}: {id} stands in {where}: {words}", markup=False, highlight=False)
    console.print(f"{len(shown)} of {len(pairs):,} pairs share more than {100 * above:g} % of the scored rows.")


def _told(one: Contamination) -> dict[str, Any]:
    return {
        "task": one.task,
        "split": one.split,
        "n": one.n,
        "ngram": one.ngram,
        "dirty": [
            {"id": id, "fields": sorted(match.fields), "where": match.where, "words": match.words}
            for id, match in one.dirty.items()
        ],
        "scores": one.scores,
        "relative": one.relative,
        "flagged": one.flagged,
    }


def _print(found: list[Contamination]) -> None:
    from rich.table import Table

    from multitune.cli.output import stdout_console

    scored = any(one.scores["all"] is not None for one in found)
    table = Table(box=None, padding=(0, 1))
    for name in ("task", "split"):
        table.add_column(name)
    for name in ("rows", "N", "dirty", "clean %", *(("all", "clean", "dirty") if scored else ())):
        table.add_column(name, justify="right")
    table.add_column("found in")
    for one in found:
        fields = sorted({name for match in one.dirty.values() for name in match.fields})
        share = f"{100 * (one.n - len(one.dirty)) / one.n:.1f}" if one.n else "-"
        cells = [one.task, one.split, f"{one.n:,}", str(one.ngram), f"{len(one.dirty):,}", share]
        if scored:
            cells += ["-" if score is None else f"{score:.3f}" for score in one.scores.values()]
        table.add_row(*cells, ", ".join(fields))
    console = stdout_console()
    console.print(table)
    for one in found:
        for id, match in list(one.dirty.items())[:1]:
            console.print(f"{one.task}: {id} stands in {match.where}: {match.words}", markup=False, highlight=False)
        if one.flagged:
            console.print(f"{one.task}: without what was seen, the score is worse; report the clean one.", markup=False)
