"""`multitune prompt-tune`: classification by a prompt's mask from few labels, with pre-training that goes on before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multitune.cli.run import Json, Overrides

STAGES = {
    "few_shot": "fine-tuned from the base",
    "pretrained": "pre-trained further, no fine-tuning",
    "fine_tuned": "pre-trained further, then fine-tuned",
}


def prompt_tune(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Model, prompt and data, a YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the stages; a stopped call goes on there.")],
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Fine-tune a masked or causal language model by a prompt, behind continued pre-training on filled prompts."""
    from multitune.cli.failures import Stopped
    from multitune.cli.output import answer_json, speak
    from multitune.recipes.prompt_file import prompt_tune as tune
    from multitune.recipes.prompt_file import read_prompt_file

    speak()
    told = read_prompt_file(file, overrides)
    from multitune.training.interrupts import Interrupted

    try:
        facts = tune(told, file.resolve().parent, out)
    except Interrupted as stop:
        raise Stopped(str(stop), str(stop.checkpoint or out)) from stop
    if json:
        answer_json({"out": out, **facts})
        return
    _print(facts)
    last = "5-fine-tuned" if "fine_tuned" in facts else "1-few-shot"
    print(f"model: {out / last / 'model'}", file=sys.stdout)


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from multitune.cli.output import stdout_console

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("model")
    for heading in ("steps", "development", "test"):
        table.add_column(heading, justify="right")
    for stage, name in STAGES.items():
        if stage in facts:
            found = facts[stage]
            test = found.get("test", found.get("zero_shot"))
            table.add_row(name, str(found["steps"]), _share(found.get("development")), _share(test))
    stdout_console().print(table)
    if "labels" in facts:
        counts = ", ".join(f"{word} {count}" for word, count in facts["labels"]["histogram"].items())
        stdout_console().print(f"labels of the other texts: {counts}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
