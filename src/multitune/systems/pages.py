"""The gallery in words: one page per system that stands, and the index of all; Markdown for the documentation and the
terminal alike. Every number comes from a system's file or from its committed result.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from multitune.systems import SYSTEMS
from multitune.systems.claims import Verdict
from multitune.systems.system import Account, Scale, System

VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive")


def committed_result(system: System, scale: str = "small") -> dict[str, Any] | None:
    """Return the result that is kept in the package, None where there is none.

    ``results/20.json`` is the small one, ``results/20-full.json`` the full one.
    """
    name = f"{system.number:02d}.json" if scale == "small" else f"{system.number:02d}-{scale}.json"
    file = files("multitune.systems") / "results" / name
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def status(system: System) -> str:
    """Return in a few words how a system stands: to come, not measured yet, or its verdicts."""
    if system.account is None:
        return "to come"
    result = committed_result(system)
    if result is None:
        return "stands, not measured yet"
    return ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(result).items())


def verdict_counts(result: dict[str, Any]) -> dict[str, int]:
    """Return how many claims have which verdict, the best first, without zeros."""
    counts = Counter(claim["verdict"] for claim in result["claims"])
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def index_page() -> str:
    """Return the page that shows all systems at a glance."""
    standing = [system for system in SYSTEMS.values() if system.account is not None]
    lines = [
        "# The gallery of systems",
        "",
        f"multitune is built for {len(SYSTEMS)} published systems. Standing: {len(standing)}; to come:"
        f" {len(SYSTEMS) - len(standing)}. A system that stands has a page that tells what it claims,"
        " what is done as published, what is not and why, and whether each claim held here: a verdict that a command"
        " computes and that can turn out either way.",
        "",
        "`multitune systems` prints this list, `multitune systems NAME` a page, and `multitune reproduce NUMBER` runs a"
        " reproduction.",
        "",
        "| number | system | what it is for | room | status |",
        "|---:|---|---|---|---|",
    ]
    for system in SYSTEMS.values():
        name = f"[{system.name}]({system.slug}.md)" if system.account else system.name
        lines.append(f"| {system.number} | {name} | {system.claim} | `{system.room}` | {status(system)} |")
    return "\n".join([*lines, ""])


def system_page(system: System, figures: dict[str, str] | None = None) -> str:
    """Return a system's page.

    Args:
        figures: scale -> address of the drawing of its verdicts, relative to the page; a terminal shows none.
    """
    lines = [f"# {system.number} {system.name}", "", f"*{system.title}.* {system.source}.", "", system.claim, ""]
    if system.account is None:
        return "\n".join([*lines, "This system is to come.", ""])
    account = system.account
    for scale in account.scales:
        if result := committed_result(system, scale):
            lines += _verdicts(result, (figures or {}).get(scale))
    if account.found and committed_result(system):
        lines += _list("What was found", account.found)
    lines += _list("What the paper claims", account.published)
    lines += _list("What is done as published", account.faithful)
    lines += _list("What deviates, and why", account.deviates)
    lines += ["## How to use it", "", f"```{account.used_in}", account.used.strip(), "```", ""]
    lines += _how_to_run(system, account)
    for scale in account.scales:
        if result := committed_result(system, scale):
            lines += _arms(result, account.scales[scale])
    return "\n".join(lines)


def _list(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""]


def _verdicts(result: dict[str, Any], figure: str | None) -> list[str]:
    lines = [f"## Verdicts, {result['scale']} scale", ""]
    for claim in result["claims"]:
        lines.append(f"- **{claim['key']}: {claim['verdict']}.** {claim['statement']} *Effect: {claim['measure']}.*")
    if figure:
        lines += ["", f"![Effects of all claims, with their intervals, against their thresholds]({figure})"]
    lines += [
        "",
        "| claim | asked for | mean | 95 % interval | every seed | verdict |",
        "|---|---|---:|---|---|---|",
    ]
    for claim in result["claims"]:
        effects = ", ".join(number(effect) for effect in claim["effects"])
        lines.append(
            f"| {claim['key']} | {claim['rule']} | {number(claim['mean'])} | {interval(claim)} | {effects} |"
            f" {claim['verdict']} |"
        )
    return [*lines, "", _measured_by(result), ""]


def _measured_by(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    gpu = "no GPU" if machine["accelerator"] == "none" else machine["accelerator"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("multitune", "torch", "transformers"))
    return (
        f"Measured by `{result['command']}` on {result['date']}: {seeds_told(result)}, {duration(result)}, "
        f"{result['process_seconds'] / 60:.0f} minutes of processor time "
        f"({machine['threads']} of {machine['processors']} cores, {machine['memory_gib']:.0f} GiB of memory, {gpu}; "
        f"{packages}). The interval of the mean over seeds is the wider one of Student's t and of the bootstrap."
    )


def duration(result: dict[str, Any]) -> str:
    """Return how long all arms took, in words."""
    return f"{result['seconds'] / 60:.0f} minutes" if result["seconds"] >= 120 else f"{result['seconds']:.0f} seconds"


def seeds_told(result: dict[str, Any]) -> str:
    """Return how many seeds were run, in words."""
    count = len(result["seeds"])
    return "1 seed" if count == 1 else f"{count} seeds"


def interval(claim: dict[str, Any]) -> str:
    """Return a judged claim's interval, "-" where it has none."""
    low, high = claim["interval"]
    return "-" if low is None or high is None else f"{number(low)} to {number(high)}"


def _how_to_run(system: System, account: Account) -> Iterator[str]:
    yield "## How to run it"
    yield ""
    for name, scale in account.scales.items():
        option = "" if name == "small" else f" --scale {name}"
        measured = "" if committed_result(system, name) else " Not measured yet."
        yield f"**{name}**: `multitune reproduce {system.number}{option}`. {scale.told}{measured}"
        yield ""
        yield from _claims_of(name, scale)


def _claims_of(name: str, scale: Scale) -> Iterator[str]:
    """Yield what a scale would judge; the small one's claims stand with their verdicts."""
    if name == "small":
        return
    yield from (f"- {claim.key}: {claim.statement}" for claim in scale.claims)
    yield ""


def _arms(result: dict[str, Any], scale: Scale) -> Iterator[str]:
    yield f"## All arms, {result['scale']} scale"
    yield ""
    yield from (f"- **{arm['name']}**: {arm['told']}; {_mean(arm['seconds']):.0f} seconds" for arm in result["arms"])
    yield ""
    yield " ".join([*scale.measures, "Mean over the seeds, and in brackets the lowest and the highest seed."])
    for title, metrics in _groups(result).items():
        yield ""
        yield f"| {title} | {' | '.join(metric.rpartition('/')[2] for metric in metrics)} |"
        yield f"|---|{'---:|' * len(metrics)}"
        for arm in result["arms"]:
            if any(metric in arm["metrics"] for metric in metrics):
                cells = " | ".join(_cell(arm["metrics"].get(metric, ())) for metric in metrics)
                yield f"| {arm['name']} | {cells} |"
    yield ""


def _groups(result: dict[str, Any]) -> dict[str, list[str]]:
    """Return the metrics by what stands before their "/" ("arm" where there is none): one table each."""
    groups: dict[str, list[str]] = {}
    for arm in result["arms"]:
        for metric in arm["metrics"]:
            group = groups.setdefault(metric.rpartition("/")[0] or "arm", [])
            if metric not in group:
                group.append(metric)
    return groups


def _cell(values: Sequence[float | None]) -> str:
    """Return mean and range of the seeds that have a value."""
    known = [value for value in values if value is not None]
    return f"{number(_mean(known))} ({number(min(known))} to {number(max(known))})" if known else "-"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def number(value: float | None) -> str:
    """Return a number to three decimals, a large one without, "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"
