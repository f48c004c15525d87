"""Which expert led a fused model's tokens, and how far: from the coefficients that scoring has kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from multitune.reporting.charts import Panel, Series, line_panel
from multitune.reporting.run_folder import Run

MOST_POSITIONS = 240


@dataclass(frozen=True)
class Lead:
    """One expert on one task: the share of tokens at which its coefficient is furthest from 0, and its mean there."""

    expert: str
    share: float
    mean_alpha: float


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of one fused model on one task.

    Attributes:
        node, task: what was scored.
        texts, tokens: that have coefficients; of choices, only the first token of each prompt's.
        leads: one per expert.
        alone: share of tokens at which no expert is active and the large model writes by itself.
        panel: mean coefficient of every expert at each position of an answer; None where answers have one.
    """

    node: str
    task: str
    texts: int
    tokens: int
    leads: tuple[Lead, ...]
    alone: float
    panel: Panel | None


def coefficients(run: Run) -> tuple[Coefficients, ...]:
    """Return what the fused models of a run did on every task that has scores; nothing where none was fused."""
    files = sorted((run.folder / "steps").glob("*/coefficients/*.jsonl"))
    found = [_of_file(file) for file in files if file.stem in run.tasks and file.parent.parent.name in run.nodes]
    return tuple(one for one in found if one is not None)


def _of_file(file: Path) -> Coefficients | None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [line["alphas"] for line in lines if line["alphas"]]
    if not texts:
        return None
    node, experts = file.parent.parent.name, lines[0]["experts"]
    tokens = [alpha_T for text in texts for alpha_T in text]
    sizes = [[abs(alpha) for alpha in alpha_T] for alpha_T in tokens]
    leaders = [size_T.index(max(size_T)) if any(size_T) else None for size_T in sizes]
    leads = []
    for place, name in enumerate(experts):
        led = [alpha_T[place] for alpha_T, leader in zip(tokens, leaders, strict=True) if leader == place]
        leads.append(Lead(name, len(led) / len(tokens), sum(led) / len(led) if led else 0.0))
    return Coefficients(
        node=node,
        task=file.stem,
        texts=len(texts),
        tokens=len(tokens),
        leads=tuple(leads),
        alone=leaders.count(None) / len(tokens),
        panel=_panel(f"{node} on {file.stem}", texts, experts),
    )


def _panel(title: str, texts: list[list[list[float]]], experts: list[str]) -> Panel | None:
    """Return the chart of mean coefficients over the texts that are so long; None where it would be one point."""
    longest = min(max(map(len, texts)), MOST_POSITIONS)
    if longest < 2 or any(alpha < 0 for text in texts for alpha_T in text for alpha in alpha_T):
        return None
    here = [[text[position] for text in texts if len(text) > position] for position in range(longest)]
    series = [
        Series(name, [(position + 1.0, sum(a[t] for a in at) / len(at)) for position, at in enumerate(here)])
        for t, name in enumerate(experts)
    ]
    return line_panel(title, series, experts, width=560, height=230, along="tokens")
