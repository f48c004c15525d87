"""`multitune extract-lora`: a LoRA adapter out of a base and a whole model tuned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multitune.cli.run import Json


def extract_lora(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of the base model.")],
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="Folder of a whole model tuned from it.")],
    out: Annotated[Path, typer.Option("--out", help="The adapter's folder; absent or empty.")],
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of every matrix, at most.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Of the decomposition's random directions.")] = 0,
    json: Json = False,
) -> None:
    """Write a LoRA adapter that approximates a fine-tuned model, and tell what each matrix loses."""
    from multitune.cli.output import answer_json, speak

    speak()
    from multitune.weights.lora_extraction import extract_lora as extract

    told = extract(base, tuned, out, rank=rank, seed=seed)
    if json:
        answer_json(told)
        return
    for name, error in told.errors.items():
        typer.echo(f"{name:<64} error {error:.4f}")
    for name, share in told.left_out.items():
        typer.echo(f"{name:<64} left out, {share:.2%} of the squared change")
    typer.echo(f"{out}: rank {rank}, {len(told.errors)} matrices, {told.kept:.2%} of the squared change")
