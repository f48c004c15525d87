"""`multitune evaluate-code`: models on code tasks, asked alone or behind examples, and their answers run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multitune.cli.run import Json
from multitune.errors import MultituneError

if TYPE_CHECKING:
    from multitune.scoring.code.evaluation import Decoding, Mode

SEEDS = (42,)


def evaluate_code(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders, hub ids, or tiny.")],
    tasks: Annotated[Path, typer.Option("--tasks", help="A recipe or suite file with tasks of kind generate.")],
    out: Annotated[Path, typer.Option("--out", help="Answers and scores; cells that are there are not redone.")],
    task: Annotated[list[str], typer.Option("--task", help="A task of the file; default: all.")] = [],  # noqa: B006
    mode: Annotated[
        list[str], typer.Option("--mode", help="zero-shot, icl:N (random examples) or rag:N (nearest); several times.")
    ] = ["zero-shot"],  # noqa: B006
    seeds: Annotated[list[int], typer.Option("--seed", help="Of icl's examples; give it several times.")] = [  # noqa: B006
        *SEEDS
    ],
    beams: Annotated[int, typer.Option("--beams", min=1, help="Width of the search; all beams are answers.")] = 1,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers drawn, with a temperature.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: greedy, or beams.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1.0, help="Of the sampling.")] = 1.0,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="At most so many rows per task.")] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Encoder of sentences for rag; default: TF-IDF.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Run the answers against the task's program.")] = False,
    weak_walls: Annotated[
        bool, typer.Option("--weak-walls", help="Run them even where the kernel cannot shut them in.")
    ] = False,
    cpu_seconds: Annotated[int, typer.Option("--cpu-seconds", min=1, help="That a program may compute.")] = 5,
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Add adapters into the weights first, where that is possible.")
    ] = True,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Programs at a time.")] = None,
    json: Json = False,
) -> None:
    """Score models on code tasks: EM@k, equal trees, CodeBLEU, and pass@k where answers are run."""
    from multitune.cli.output import answer_json, speak, stdout_console
    from multitune.cli.progress import scoring_progress
    from multitune.recipes.code_evaluation import Study, evaluate
    from multitune.scoring.code.sandbox import Limits

    speak()
    if weak_walls and not execute:
        raise MultituneError("Nothing is run without --execute.", "--weak-walls", "Add --execute, or take it out.")
    study = Study(
        tasks,
        tuple(task),
        _modes(mode, seeds),
        _decoding(beams, samples, temperature, top_p),
        rows,
        Limits(cpu_seconds=cpu_seconds, seconds=4.0 * cpu_seconds, weak=weak_walls) if execute else None,
        workers,
        encoder,
        merge,
    )
    with scoring_progress() as report:
        cells = evaluate(models, study, out, report)
    if json:
        answer_json({"out": out, "cells": cells})
        return
    stdout_console().print(_table(cells), highlight=False)
    typer.echo(f"\nanswers and scores: {out}")


def _modes(texts: Sequence[str], seeds: Sequence[int]) -> tuple[Mode, ...]:
    """Every way of asking once; random examples once per seed."""
    from multitune.scoring.code.evaluation import mode_of

    modes = [mode_of(text, seed) for text in texts for seed in (seeds if text.startswith("icl") else seeds[:1])]
    return tuple(dict.fromkeys(modes))


def _decoding(beams: int, samples: int, temperature: float, top_p: float) -> Decoding:
    from multitune.scoring.code.evaluation import Decoding

    if temperature > 0 and beams > 1:
        raise MultituneError("Beams are searched, not drawn.", f"--beams {beams}", "Take --temperature or --beams out.")
    if samples > 1 and temperature == 0:
        raise MultituneError(
            f"{samples} answers without a temperature would all be the same.",
            f"--samples {samples}",
            "Set --temperature, or use --beams.",
        )
    return Decoding(beams=beams, samples=samples, temperature=temperature, top_p=top_p)


def _table(cells: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("model", "task", "mode"):
        table.add_column(heading, overflow="fold")
    metrics = list(dict.fromkeys(name for cell in cells for name in cell["metrics"]))
    for heading in ("seed", "n", *metrics, "seconds", "tokens/s", "peak MiB"):
        table.add_column(heading, justify="right")
    for cell in cells:
        values = [cell["metrics"].get(name) for name in metrics]
        table.add_row(
            cell["model"],
            cell["task"],
            cell["mode"],
            str(cell["seed"]) if cell["mode"].startswith("icl") else "",
            f"{cell['n']:,}",
            *("" if value is None else f"{value['value']:.4f}" for value in values),
            f"{cell['seconds']:.1f}",
            "" if cell["tokens_per_second"] is None else f"{cell['tokens_per_second']:.0f}",
            "" if cell["peak_bytes"] is None else f"{cell['peak_bytes'] / 2**20:.0f}",
        )
    return table
