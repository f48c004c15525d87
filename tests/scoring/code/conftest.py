"""Tests that run programs need the kernel's walls; elsewhere they say so and are skipped."""

from __future__ import annotations

import pytest

from multitune.errors import MultituneError
from multitune.scoring.code.sandbox import run


def missing_walls() -> str:
    """Why programs cannot be shut in on this machine; "" where they can."""
    try:
        run("assert True")
    except MultituneError as error:
        return error.what
    return ""


_MISSING = missing_walls()
needs_walls = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)
