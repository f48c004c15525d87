"""A drawing of theta: every task on a line, those that do not belong away from the middle."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

import numpy as np

from multitune.tabular.boosting_estimator import RobustBooster

LINE, LABEL, PLOT, MARGIN = 18, 140, 420, 24  # pixels
MOST_TASKS = 60  # that are drawn: those furthest from the middle
LETTERS = 20  # of a task's name
INK, STRONG, FAINT = "#555", "#c0392b", "#bbb"


def plot_theta(booster: RobustBooster, path: str | os.PathLike[str] | None = None) -> str:
    """Return an SVG of every task's theta, sorted, with the median as a line, and write it where a path is given.

    A dot's colour tells the outlier score, from grey to red. Of more than 60 tasks those furthest from the median are
    drawn.
    """
    table = booster._task_table().head(MOST_TASKS).sort_values("theta", kind="stable")
    median = float(np.median(booster.theta_))
    low, high = min(table["theta"].min(), median), max(table["theta"].max(), median)
    reach = (high - low) or 1.0

    def across(theta: float) -> float:
        return LABEL + PLOT * (theta - low) / reach

    height = 2 * MARGIN + LINE * len(table)
    width = LABEL + PLOT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<line x1="{across(median):.1f}" x2="{across(median):.1f}" y1="{MARGIN - 4}" y2="{height - MARGIN}" '
        f'stroke="{FAINT}"/>',
        f'<text x="{across(median):.1f}" y="{MARGIN - 8}" text-anchor="middle">median {median:.3g}</text>',
        f'<text x="{LABEL}" y="{height - 6}">{low:.3g}</text>',
        f'<text x="{LABEL + PLOT}" y="{height - 6}" text-anchor="end">theta {high:.3g}</text>',
    ]
    for number, (task, theta, score) in enumerate(
        zip(table.index, table["theta"], table["outlier_score"], strict=True)
    ):
        y = MARGIN + LINE * (number + 0.5)
        name, told = escape(str(task)[:LETTERS]), f"{escape(str(task))}: theta {theta:.3g}, outlier score {score:.2f}"
        parts += [
            f'<text x="{LABEL - 10}" y="{y + 4:.1f}" text-anchor="end">{name}</text>',
            f'<circle cx="{across(theta):.1f}" cy="{y:.1f}" r="5" stroke="{INK}" fill="{STRONG}" '
            f'fill-opacity="{0.15 + 0.85 * score:.2f}"><title>{told}</title></circle>',
        ]
    drawing = "\n".join([*parts, "</svg>"]) + "\n"
    if path is not None:
        file = Path(path)
        partial = file.with_name(file.name + ".partial")
        partial.write_text(drawing)
        os.replace(partial, file)
    return drawing
