"""The drawing of a reproduction's verdicts: every effect with its interval and its seeds, against its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multitune.reporting.charts import Mark, Whisker, whisker
from multitune.reporting.report import TEMPLATES

WIDTH, TRACK, ROW = 720, 400, 58  # pixels


@dataclass(frozen=True)
class DrawnClaim:
    """One row of the drawing.

    Attributes:
        title: what the effect is.
        mark: the effect; None where it is not defined.
        threshold: where the line stands.
        verdict: "reproduced", "not reproduced" or "inconclusive".
        told: the numbers in words.
    """

    title: str
    mark: Mark | None
    threshold: float
    verdict: str
    told: str


def claims_drawing(claims: Sequence[DrawnClaim]) -> str:
    """Return an SVG image of its own, in colours that can be read on light and on dark pages.

    Every claim has a scale of its own with its threshold as the line: what reaches it lies at the line or right of it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [(claim, _whisker(claim)) for claim in claims]
    return environment.get_template("claims.svg").render(rows=rows, width=WIDTH, row=ROW, track=TRACK) + "\n"


def _whisker(claim: DrawnClaim) -> Whisker | None:
    """Return the mark with the threshold as zero, on a scale that just holds it."""
    if claim.mark is None:
        return None
    mark = claim.mark
    shifted = Mark(
        mark.value - claim.threshold,
        tuple(end - claim.threshold for end in mark.interval),
        tuple(run - claim.threshold for run in mark.runs),
    )
    return whisker(shifted, low=min(0.0, *shifted.ends), high=max(0.0, *shifted.ends), width=TRACK)
