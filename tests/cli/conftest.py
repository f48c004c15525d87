"""Commands run in the tests' own process leave no trace in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """Give the log back as it was: a command sends it to its own console."""
    logger = logging.getLogger("multitune")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before
