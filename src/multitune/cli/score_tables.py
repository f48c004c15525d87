"""The tables of `multitune score`."""

from __future__ import annotations

from typing import Any


def print_scores(scores: list[dict[str, Any]]) -> None:
    """Print a row per task and metric."""
    from rich.table import Table

    from multitune.cli.output import stdout_console

    several = {name for name in ("shots", "normalisation", "template") if len({one[name] for one in scores}) > 1}
    shown = several | ({"shots"} if any(one["shots"] for one in scores) else set())
    table = Table(box=None, padding=(0, 1))
    for name in ("task", "split", "metric"):
        table.add_column(name)
    if "normalisation" in shown:
        table.add_column("normalisation")
    if "template" in shown:
        table.add_column("template")
    if "shots" in shown:
        table.add_column("shots", justify="right")
    for name in ("n", "value", "95 % interval"):
        table.add_column(name, justify="right")
    for one in scores:
        for metric, value in one["metrics"].items():
            low, high = one["intervals"][metric]
            cells = [one["task"], one["split"], metric]
            cells += [one["normalisation"]] * ("normalisation" in shown)
            cells += [one["template"] or "all"] * ("template" in shown) + [_shots(one)] * ("shots" in shown)
            table.add_row(*cells, f"{one['n']:,}", f"{value:.3f}", f"{low:.3f} to {high:.3f}")
    stdout_console().print(table)


def print_levels(levels: list[dict[str, Any]]) -> None:
    """Print a row per level and category."""
    from rich.table import Table

    from multitune.cli.output import stdout_console

    table = Table(box=None, padding=(0, 1))
    several = len({line["shots"] for line in levels}) > 1
    for name in ("level", "category"):
        table.add_column(name)
    for name in (*["shots"] * several, "tasks", "mean", "95 % interval"):
        table.add_column(name, justify="right")
    for line in levels:
        whole = not line["category"]
        cells = [line["level"] if whole else "", line["category"] or "all"]
        cells += [str(line["shots"])] * several
        cells += [str(line["tasks"]), f"{line['value']:.3f}", f"{line['low']:.3f} to {line['high']:.3f}"]
        table.add_row(*cells, style="bold" if whole else None)
    stdout_console().print()
    stdout_console().print(table)


def print_languages(languages: list[dict[str, Any]], means: list[dict[str, Any]]) -> None:
    """Print a row per data set and language, and the means over languages under each data set's rows."""
    from rich.table import Table

    from multitune.cli.output import stdout_console

    table = Table(box=None, padding=(0, 1))
    several = len({one["shots"] for one in languages}) > 1
    for name in ("data set", "language", "metric"):
        table.add_column(name)
    for name in (*["shots"] * several, "prompts", "median", "best", "spread"):
        table.add_column(name, justify="right")
    marks = {"seen": "", "unseen": " (unseen)", "": ""}
    for key in dict.fromkeys((one["dataset"], one["metric"], one["shots"]) for one in languages):
        cells = [one for one in languages if (one["dataset"], one["metric"], one["shots"]) == key]
        shots = [str(key[2])] * several
        for place, one in enumerate(cells):
            found = one["scores"]
            spread = "" if found["spread"] is None else f"{found['spread']:.3f}"
            numbers = (str(found["prompts"]), f"{found['median']:.3f}", f"{found['best']:.3f}", spread)
            table.add_row("" if place else key[0], one["language"] + marks[one["seen"]], key[1], *shots, *numbers)
        for mean in means:
            if (mean["dataset"], mean["metric"], mean["shots"]) == key:
                title = f"mean of {len(mean['languages'])}" + (f" {mean['seen']}" if mean["seen"] != "all" else "")
                numbers = ("", f"{mean['median']:.3f}", f"{mean['best']:.3f}", "")
                table.add_row("", title, key[1], *shots, *numbers, style="bold")
    stdout_console().print()
    stdout_console().print(table)


def _shots(one: dict[str, Any]) -> str:
    """Return the demonstrations asked for, and where fewer fitted, how many stood there on average."""
    used = one["shots_used"]
    return str(one["shots"]) if used == one["shots"] else f"{one['shots']} ({used:.1f} fit)"
