"""The drawings' geometry: round axes, everything inside its box, labels apart, exact running means."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitune.reporting.charts import Mark, Series, line_panel, round_values, short, smoothed, spread_apart, whisker

numbers = st.floats(0, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 3, [0, 1, 2, 3]), (0, 0.9, [0, 0.25, 0.5, 0.75, 1]), (0, 400, [0, 100, 200, 300, 400]), (0, 0, [0, 0.25])],
)
def test_round_values(low, high, expected):
    assert round_values(low, high, at_most=4) == expected


@given(numbers)
def test_an_axis_covers_its_values_with_few_ticks(high):
    values = round_values(0.0, high, at_most=4)
    assert values[0] == 0 and values[-1] >= high * (1 - 1e-6) - 1e-9
    assert 2 <= len(values) <= 6


def test_running_means_are_sums_over_counts():
    assert smoothed([4.0, 1.0], [1, 3], memory=0.5) == [4.0, pytest.approx((0.5 * 4 + 3 * 1) / (0.5 + 3))]
    assert smoothed([1.0, 2.0, 3.0], [5, 1, 9], memory=0.0) == [1.0, 2.0, 3.0]
    assert smoothed([2.0] * 4, [1, 7, 2, 5], memory=0.9) == pytest.approx([2.0] * 4)


@given(st.dictionaries(st.text(max_size=3), st.floats(10, 100), min_size=1, max_size=6))
def test_labels_stand_apart_in_the_order_of_their_lines(places):
    moved = spread_apart(places, gap=12.0, low=10.0, high=100.0)
    assert moved.keys() == places.keys()
    ordered = [moved[name] for name, _ in sorted(places.items(), key=lambda item: (item[1], item[0]))]
    assert all(b - a >= 12 - 1e-9 for a, b in pairwise(ordered))
    assert ordered[-1] <= 100 + 1e-9


@given(st.lists(st.tuples(st.floats(1, 1e5), numbers), min_size=1, max_size=20))
def test_lines_stay_in_their_box(points):
    ordered = sorted(points)
    panel = line_panel("loss", [Series("joint", ordered)], ["joint"], width=264, height=150, raw=[ordered])
    for line in (*panel.raw, *(line.points for line in panel.lines)):
        for point in line.split():
            x, y = map(float, point.split(","))
            assert panel.left - 0.1 <= x <= panel.right + 0.1
            assert panel.top - 0.1 <= y <= panel.bottom + 0.1


def test_a_name_looks_the_same_in_every_chart():
    panel = line_panel("loss", [Series("alone", [(1, 2)])], ["joint", "alone"], width=264, height=150)
    assert [label.rank for label in panel.labels] == [1]
    assert panel.summary == "loss, steps 1 to 1: alone from 2 to 2"


def test_a_whisker_has_its_zero_where_the_scale_says():
    drawn = whisker(Mark(0.5, (0.0, 1.0), (0.25,)), low=-1.0, high=1.0, width=112.0)
    assert (drawn.zero, drawn.dot, drawn.interval, drawn.runs) == (56.0, 81.0, (56.0, 106.0), (68.5,))
    assert whisker(Mark(0.0, (), ()), low=0.0, high=0.0, width=112.0).zero == 56.0


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (3, "3"), (1200, "1,200"), (45_000, "45k"), (1.2e6, "1.2M")]
)
def test_short(value, text):
    assert short(value) == text
