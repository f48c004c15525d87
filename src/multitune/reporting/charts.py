"""The geometry of the report's drawings: numbers in, coordinates and labels out; the templates draw them as SVG.

Coordinates are pixels with the origin at the top left, as in SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line to draw: (step, value) points in order, and the name written at its end."""

    name: str
    points: Points


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in pixels, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A drawn series: ``points`` for an SVG polyline, the place of its end, and ``rank`` for its look."""

    name: str
    points: str
    rank: int
    end_x: float
    end_y: float


@dataclass(frozen=True)
class Label:
    """A name written beside the end of its line (of its longest line, when several share the name)."""

    text: str
    rank: int
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """One line chart: its size, the inner box and everything to draw in it.

    ``raw`` are the faint lines behind, as points for SVG polylines; ``summary`` tells the chart in words.
    """

    title: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    raw: tuple[str, ...]
    lines: tuple[Line, ...]
    labels: tuple[Label, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str


@dataclass(frozen=True)
class Mark:
    """A value with its interval, () where unknown, and the single runs' values where there are several."""

    value: float
    interval: tuple[float, ...]
    runs: tuple[float, ...]

    @property
    def ends(self) -> tuple[float, ...]:
        """Every number that has to fit into a drawing."""
        return (self.value, *self.interval, *self.runs)

    def over(self, unit: float) -> Mark:
        """Return the same mark measured in another unit."""
        return Mark(
            self.value / unit, tuple(end / unit for end in self.interval), tuple(run / unit for run in self.runs)
        )


@dataclass(frozen=True)
class Whisker:
    """A drawn mark: places of zero, the dot, the ends of the interval (() where unknown) and the single runs."""

    width: float
    zero: float
    dot: float
    interval: tuple[float, ...]
    runs: tuple[float, ...]


LETTER, WIDE = 6.8, 400.0
"""Pixels of a letter of a label; the width from which a chart has room for long ones."""


def line_panel(
    title: str,
    series: Sequence[Series],
    names: Sequence[str],
    *,
    width: float,
    height: float,
    raw: Sequence[Points] = (),
    along: str = "steps",
) -> Panel:
    """Return one chart of several lines with labels at their ends.

    Args:
        series: at least one, each with at least one point, values at least 0; series of the same name look the same.
        names: every name of the page in order, so that a name looks the same in every chart.
        raw: what the series were smoothed from, drawn faintly behind them.
        along: what the axis counts.
    """
    labels = {one.name: cut_name(one.name, 18 if width >= WIDE else 9) for one in series}
    margin = max(62.0, 14.0 + LETTER * max(map(len, labels.values())))
    left, right, top, bottom = 40.0, width - margin, 10.0, height - 22.0
    drawn = [*(one.points for one in series), *raw]
    xs = [x for points in drawn for x, _ in points]
    ys = [y for points in drawn for _, y in points]
    y_values = round_values(0.0, max(ys), at_most=4)
    x_values = round_values(0.0, max(xs), at_most=4)
    x_end, y_low, y_high = max(xs), y_values[0], y_values[-1]

    def x_place(x: float) -> float:
        return round(left + (right - left) * x / (x_end or 1.0), 1)

    def y_place(y: float) -> float:
        return round(bottom - (bottom - top) * (y - y_low) / (y_high - y_low), 1)

    def places(points: Points) -> str:
        return " ".join(f"{x_place(x)},{y_place(y)}" for x, y in points)

    ranks = {one.name: min(names.index(one.name), 3) for one in series}
    lines = tuple(
        Line(
            name=one.name,
            points=places(one.points),
            rank=ranks[one.name],
            end_x=x_place(one.points[-1][0]),
            end_y=y_place(one.points[-1][1]),
        )
        for one in series
    )
    ends = {name: max((line for line in lines if line.name == name), key=lambda line: line.end_x) for name in ranks}
    label_y = spread_apart({name: line.end_y for name, line in ends.items()}, gap=12.0, low=top, high=bottom)
    told = "; ".join(f"{one.name} from {short(one.points[0][1])} to {short(one.points[-1][1])}" for one in series)
    return Panel(
        title=title,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        raw=tuple(places(points) for points in raw),
        lines=lines,
        labels=tuple(Label(labels[name], ranks[name], ends[name].end_x + 6, label_y[name]) for name in ranks),
        x_ticks=tuple(Tick(x_place(x), short(x)) for x in x_values if x <= x_end),
        y_ticks=tuple(Tick(y_place(y), short(y)) for y in y_values),
        summary=f"{title}, {along} {short(min(xs))} to {short(x_end)}: {told}",
    )


def whisker(mark: Mark, *, low: float, high: float, width: float) -> Whisker:
    """Return a mark on a scale from low to high, low <= 0 <= high; a scale of one point has zero in its middle."""

    def place(x: float) -> float:
        inside = (x - low) / (high - low) if high > low else 0.5
        return round(6 + (width - 12) * inside, 1)

    return Whisker(
        width=width,
        zero=place(0.0),
        dot=place(mark.value),
        interval=tuple(map(place, mark.interval)),
        runs=tuple(map(place, mark.runs)),
    )


def round_values(low: float, high: float, *, at_most: int) -> list[float]:
    """Return 2 to about ``at_most`` + 2 round values, evenly spaced, whose first is at most ``low``."""
    span = high - low
    if span < 1e-9:  # nothing to tell apart, and too small to divide by
        span = max(abs(high), 1.0)
    raw = span / at_most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if magnitude * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(step * i, 10) for i in range(first, last + 1)]


def spread_apart(places: dict[str, float], *, gap: float, low: float, high: float) -> dict[str, float]:
    """Return the same places moved as little as keeps them ``gap`` apart, downwards first, inside low..high."""
    moved: dict[str, float] = {}
    floor = low
    for name, place in sorted(places.items(), key=lambda item: (item[1], item[0])):
        moved[name] = floor = max(place, floor)
        floor += gap
    overflow = max(0.0, (floor - gap) - high)
    return {name: place - overflow for name, place in moved.items()}


def smoothed(values: Sequence[float], counts: Sequence[float], *, memory: float) -> list[float]:
    """Return running means weighted by counts: S_i / N_i with S_i = memory * S_(i-1) + count_i * value_i, N_i alike.

    Sums and counts decay together, so a line with few tokens moves the mean little.
    """
    total = number = 0.0
    means = []
    for value, count in zip(values, counts, strict=True):
        total, number = memory * total + count * value, memory * number + count
        means.append(total / number if number else value)
    return means


def cut_name(name: str, longest: int) -> str:
    """Return a name short enough to stand beside the end of a line."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def short(value: float) -> str:
    """Return a number as people write it on an axis: 0.25, 3, 1,200, 45k, 1.2M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.3g}"
