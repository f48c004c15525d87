"""The drawing of verdicts: thresholds as lines, effects where they belong, text escaped."""

from __future__ import annotations

from xml.etree import ElementTree

from multitune.reporting.charts import Mark
from multitune.reporting.claims import ROW, TRACK, DrawnClaim, claims_drawing

SVG = "{http://www.w3.org/2000/svg}"


def rows(*claims: DrawnClaim) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(claims_drawing(claims))
    assert int(root.attrib["height"]) == ROW * len(claims)
    return root.findall(f"{SVG}g")


def zero_and_dot(row: ElementTree.Element) -> tuple[float, float]:
    line = next(line for line in row.findall(f"{SVG}line") if line.attrib["class"] == "zero")
    circle = row.find(f"{SVG}circle")
    return float(line.attrib["x1"]), float(circle.attrib["cx"])


def test_an_effect_above_its_threshold_lies_right_of_the_line():
    above, below = rows(
        DrawnClaim("1", Mark(0.9, (0.8, 1.0), (0.85, 0.95)), 0.5, "reproduced", "0.9"),
        DrawnClaim("2", Mark(0.1, (0.0, 0.2), ()), 0.5, "not reproduced", "0.1"),
    )
    # the scale runs from the threshold, 6 pixels in, to the farthest end: 0.4 of 0.5 of the way
    assert zero_and_dot(above) == (6.0, 6.0 + round((TRACK - 12) * 0.8, 1))
    assert zero_and_dot(below) == (TRACK - 6.0, 6.0 + round((TRACK - 12) * 0.2, 1))
    assert len(above.findall(f"{SVG}line")) == 4 and len(below.findall(f"{SVG}line")) == 2


def test_an_effect_that_is_not_defined_is_told_and_not_drawn():
    (row,) = rows(DrawnClaim("4", None, 0.0, "inconclusive", "not defined"))
    assert row.find(f"{SVG}circle") is None and row.find(f"{SVG}line") is None
    assert [text.text for text in row.findall(f"{SVG}text")] == ["4", "inconclusive", "not defined"]


def test_text_is_escaped():
    drawn = claims_drawing([DrawnClaim("<b>&", None, 0.0, "inconclusive", "<script>")])
    assert "<script>" not in drawn and "&lt;b&gt;&amp;" in drawn
