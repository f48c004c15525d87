"""The page's colours can be read: contrast of text by WCAG 2.2, in light and dark."""

from __future__ import annotations

import re

import pytest

from multitune.reporting.report import TEMPLATES

CSS = (TEMPLATES / "style.css").read_text(encoding="utf-8")
BLOCKS = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in BLOCKS[:2])


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "better", "worse", "line-0", "line-1", "line-2", "line-3"])
def test_text_can_be_read(colours, name):
    assert contrast(colours[name], colours["page"]) >= 4.5
    assert contrast(colours[name], colours["card"]) >= 4.5


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_drawings_can_be_seen(colours):
    assert contrast(colours["unclear"], colours["page"]) >= 3
    assert contrast(colours["bar"], colours["page"]) >= 2
