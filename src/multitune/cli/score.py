"""`multitune score`: score any model on a file of tasks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from multitune.cli.run import Json


def score(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder (whole model or adapter), a fusion file, a hub id, or tiny."),
    ],
    tasks: Annotated[
        Path | None, typer.Option("--tasks", help="A recipe, a suite, or a folder of Super-NaturalInstructions.")
    ] = None,
    harness: Annotated[
        str, typer.Option("--harness", help="In its place: tasks of lm-evaluation-harness, with commas between.")
    ] = "",
    include: Annotated[
        Path | None, typer.Option("--include", help="With --harness: a folder of your own task files.")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="With --harness: tasks may run code, of their folder or the model's.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Keep scores and predictions in this folder.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="At most so many examples per task.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the intervals' resampling.")] = 0,
    shots: Annotated[
        str | None, typer.Option("--shots", help="Demonstrations before every question: 4, or 0,1,2,4 for a curve.")
    ] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="The same demonstrations before all questions, read once.")
    ] = False,
    draw_seed: Annotated[int, typer.Option("--draw-seed", min=0, help="Of the demonstrations' draw.")] = 0,
    instruction: Annotated[str, typer.Option("--instruction", help="Stands on top of every prompt.")] = "",
    normalisation: Annotated[
        str,
        typer.Option(
            "--normalisation", help="How choices are compared: none, token, character, byte, unconditional; or all."
        ),
    ] = "none",
    templates: Annotated[
        str,
        typer.Option(
            "--templates", help="Of a task with several: the first, all in one score, or each with a score of its own."
        ),
    ] = "first",
    soft_prompt: Annotated[
        str,
        typer.Option(
            "--soft-prompt", help="Of a model trained behind prompts: own (of each task), off, or always the only one."
        ),
    ] = "own",
    json: Json = False,
) -> None:
    """Score a model on every task of a file that has test or validation rows."""
    from multitune.cli.output import answer_json, speak
    from multitune.cli.score_tables import print_languages, print_levels, print_scores
    from multitune.errors import MultituneError
    from multitune.recipes.scoring import languages_of, levels_of, score_model
    from multitune.scoring.in_context.demonstrations import Demonstrations
    from multitune.scoring.score import ScoreConfig

    speak()
    if (tasks is None) == (not harness):
        raise MultituneError(
            "What is to be scored?" if tasks is None else "Only one of --tasks and --harness can be scored at a time.",
            "--tasks, --harness",
            "Give --tasks FILE, or --harness NAMES.",
        )
    if tasks is None:
        _score_harness(model, harness, include, rows, shots, seed, allow_code, out, json)
        return
    curve = _numbers(shots or "0")
    config = ScoreConfig(
        rows=rows,
        shots=curve[0],
        demonstrations=Demonstrations(
            draw="fixed" if fixed else "per_item", seed=draw_seed, instruction=instruction.replace("\\n", "\n")
        ),
        **_comparison(normalisation),
        templates=_one_of(templates, ("first", "all", "each"), "--templates", "which templates are asked"),
        soft_prompt=_one_of(soft_prompt, ("own", "off", "always"), "--soft-prompt", "which tasks read a prompt"),
    )
    scores = score_model(model, tasks, out=out, seed=seed, config=config, curve=curve if len(curve) > 1 else ())
    levels = [
        {"shots": number, **asdict(line)}
        for number in curve
        for line in levels_of(model, tasks, [one for one in scores if one.shots == number], seed)
    ]
    languages: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for number in curve:
        cells, over = languages_of(model, tasks, [one for one in scores if one.shots == number])
        languages += [{"shots": number, **asdict(cell)} for cell in cells]
        means += [{"shots": number, **asdict(mean)} for mean in over]
    answer: dict[str, Any] = {
        "model": model,
        "out": out,
        "scores": [
            {
                "task": s.task,
                "split": s.split,
                "n": s.n,
                "shots": s.shots,
                "shots_used": s.shots_used,
                "draw_seed": s.draw_seed,
                "prompts": s.prompts,
                "normalisation": s.normalisation,
                "template": s.template,
                "metrics": s.metrics,
                "intervals": {name: list(interval) for name, interval in s.intervals.items()},
            }
            for whole in scores
            for s in (whole, *whole.others)
        ],
        "levels": levels,
        "languages": languages,
        "language_means": means,
    }
    if json:
        answer_json(answer)
        return
    print_scores(answer["scores"])
    if levels:
        print_levels(levels)
    if languages:
        print_languages(languages, means)
    if out is not None:
        typer.echo(f"\nscores and predictions: {out}")


def _score_harness(
    model: str,
    names: str,
    include: Path | None,
    rows: int | None,
    shots: str | None,
    seed: int,
    allow_code: bool,
    out: Path | None,
    json: bool,
) -> None:
    """Score a model on tasks of lm-evaluation-harness."""
    from multitune.cli.output import answer_json
    from multitune.recipes.harness import HarnessRun, score_harness

    asked = tuple(name.strip() for name in names.split(",") if name.strip())
    several = None if shots is None else _numbers(shots)[0]
    run = HarnessRun(asked, include, rows, several, seed=seed, allow_code=allow_code)
    lines = score_harness(model, run, out)
    if json:
        answer_json({"model": model, "out": out, "harness": lines})
        return
    _print_harness(lines)
    if out is not None:
        typer.echo(f"\nscores and samples: {out}")


def _print_harness(lines: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from multitune.cli.output import stdout_console

    table = Table(box=None, padding=(0, 1))
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("shots", "n", "value", "95 % interval"):
        table.add_column(name, justify="right")
    for line in lines:
        bounds = "" if line["stderr"] is None else f"{line['low']:.3f} to {line['high']:.3f}"
        cells = [line["task"], line["metric"], str(line["shots"]), f"{line['n']:,}", f"{line['value']:.3f}", bounds]
        table.add_row(*cells)
    stdout_console().print(table)


def _numbers(shots: str) -> list[int]:
    """Return the numbers of shots, each once."""
    from multitune.errors import MultituneError

    try:
        found = [int(number) for number in shots.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise MultituneError(
            f"'{shots}' is no number of demonstrations.", "--shots", "Write --shots 4, or --shots 0,1,2,4 for a curve."
        )
    return found


def _comparison(normalisation: str) -> dict[str, Any]:
    """Return the keys of the config that say how choices are compared."""
    from multitune.errors import MultituneError, nearest
    from multitune.scoring.normalisations import NORMALISATIONS

    if normalisation == "all":
        return {"all_normalisations": True}
    if normalisation not in NORMALISATIONS:
        known = [*NORMALISATIONS, "all"]
        raise MultituneError(
            f"There is no normalisation '{normalisation}'.{nearest(normalisation, known)}",
            "--normalisation",
            f"Use one of: {', '.join(known)}.",
        )
    return {"choice_normalisation": normalisation}


def _one_of(asked: str, known: tuple[str, ...], flag: str, what: str) -> Any:
    """Return a word that was asked for, where it is one of the known."""
    from multitune.errors import MultituneError

    if asked not in known:
        raise MultituneError(f"'{asked}' does not say {what}.", flag, f"Use one of: {', '.join(known)}.")
    return asked
