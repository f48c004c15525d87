"""`multitune methods`: the ways of adapting a model, and what each would train on one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from multitune.cli.run import Json

if TYPE_CHECKING:
    from multitune.adaptation.methods import Method


def methods(
    which: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A method: shows its facts and options.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A model: counts what each method would train on it.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Numbers that may train; below 1: a share. With --model."),
    ] = None,
    json: Json = False,
) -> None:
    """List the methods that `adapt:` knows, or tell one; with --model, how large each is on it."""
    from multitune.adaptation.methods import METHODS, NOT_OFFERED
    from multitune.cli.output import answer_json, speak
    from multitune.errors import MultituneError, nearest

    speak()
    if which is not None and which not in METHODS:
        raise MultituneError(
            f"There is no method '{which}'.{nearest(which, METHODS)}", "methods", f"Use one of: {', '.join(METHODS)}."
        )
    if budget is not None and model is None:
        raise MultituneError("A budget needs a model.", "--budget", "Add --model with its name or folder.")
    names = [which] if which is not None else [name for name in METHODS if name not in NOT_OFFERED]
    described = [fact_sheet(name, METHODS[name]) for name in names]
    if model is not None:
        from multitune.adaptation.sizes import sizes_on

        counted = sizes_on(model, names, budget)
        described = [facts | counted[facts["name"]] for facts in described]
    if json:
        answer_json(described if which is None else described[0])
    elif which is not None:
        _show_one(described[0])
    elif model is not None:
        _show_sizes(model, described)
    else:
        _show_list(described)


def fact_sheet(name: str, method: Method) -> dict[str, Any]:
    """Return what the registry and peft say of a method, as JSON knows it."""
    from multitune.adaptation.config import default_options
    from multitune.adaptation.methods import NOT_OFFERED

    source = f"https://arxiv.org/abs/{method.source}" if method.source[:4].isdigit() else method.source
    return {
        "name": name,
        "family": method.family,
        "rule": method.rule,
        "trains": method.trains,
        "size": method.size,
        "merges": method.merges,
        "identity_at_start": method.identity,
        "needs_task": method.needs_task,
        "quantised_base": method.quantised,
        "reads": list(method.modalities),
        "source": source,
        "not_offered": NOT_OFFERED.get(name),
        "options": default_options(name),
    }


def _show_list(described: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from multitune.cli.output import stdout_console

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("method", "family", "what it does", "merges", "size"):
        table.add_column(heading, overflow="fold")
    for facts in sorted(described, key=lambda facts: (facts["family"], facts["name"])):
        table.add_row(
            facts["name"], facts["family"], facts["rule"], "yes" if facts["merges"] else "no", facts["size"] or ""
        )
    console = stdout_console()
    console.print(table, highlight=False)
    console.print(f"\n{len(described)} methods; `multitune methods NAME` tells one, --model M counts on a model.")


def _show_sizes(model: str, described: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from multitune.cli.output import stdout_console

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("method")
    table.add_column("size")
    table.add_column("trains", justify="right")
    table.add_column("share", justify="right")
    table.add_column("", overflow="fold")
    for facts in sorted(described, key=lambda facts: (facts["trainable"] is None, -(facts["trainable"] or 0))):
        size = ", ".join(f"{name} {value}" for name, value in facts["sized"].items())
        trains = f"{facts['trainable']:,}" if facts["trainable"] is not None else ""
        share = f"{facts['share']:.2%}" if facts["trainable"] is not None else ""
        table.add_row(facts["name"], size, trains, share, facts["problem"] or "")
    console = stdout_console()
    console.print(f"What each method trains on {model}\n", markup=False, highlight=False)
    console.print(table, highlight=False)


def _show_one(facts: dict[str, Any]) -> None:
    from multitune.cli.output import stdout_console

    console = stdout_console()
    answers = {True: "yes", False: "no", None: "no single option"}
    lines = {
        "family": facts["family"],
        "computes": facts["rule"],
        "trains": facts["trains"],
        "size set by a budget": answers.get(facts["size"], facts["size"]),
        "merges into the weights": answers[facts["merges"]],
        "starts as the base": answers[facts["identity_at_start"]],
        "needs the task of each row": answers[facts["needs_task"]],
        "stands on 4 or 8 bits": answers[facts["quantised_base"]],
        "models that read": ", ".join(facts["reads"]),
        "source": facts["source"],
    }
    if facts["not_offered"]:
        lines["not offered"] = facts["not_offered"]
    if "trainable" in facts:
        found = facts["problem"] or f"{facts['trainable']:,} ({facts['share']:.2%})"
        lines["on this model"] = ", ".join([*(f"{name} {value}" for name, value in facts["sized"].items()), found])
    console.print(f"[bold]{facts['name']}[/bold]", highlight=False)
    for name, value in lines.items():
        console.print(f"  {name:28s}{value}", markup=False, highlight=False)
    if facts["options"]:
        console.print("\noptions and defaults", highlight=False)
    for name, value in sorted(facts["options"].items()):
        console.print(f"  {name:28s}{value}", markup=False, highlight=False)
