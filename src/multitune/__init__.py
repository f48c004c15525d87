"""multitune adapts one pretrained model to many tasks and measures what every task gained and lost."""

from __future__ import annotations

__version__ = "0.1.0"
