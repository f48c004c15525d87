"""A system whose arms are arithmetic, so that the machinery around them is what is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multitune.systems.claims import Claim, Metrics
from multitune.systems.system import Account, Arm, Scale, System

MakeSystem = Callable[..., System]


@pytest.fixture
def ran() -> list[tuple[float, int]]:
    """The pairs that really ran: (slope, seed)."""
    return []


@pytest.fixture
def make_system(ran: list[tuple[float, int]]) -> MakeSystem:
    def run(settings: Mapping[str, Any], seed: int, folder: Path) -> Metrics:
        if settings.get("fails_at") == seed:
            raise KeyboardInterrupt
        (folder / "checkpoint").write_text("half way")
        ran.append((settings["slope"], seed))
        return {"height": settings["slope"] * (seed + 1), "missing": float("nan")}

    def make(slope: float = 2.0, version: int = 1, **settings: Any) -> System:
        arms = (Arm("flat", "slope 1", {"slope": 1.0}), Arm("steep", "slope 2", {"slope": slope, **settings}))
        higher = Claim(
            "1", "Steep is higher.", "steep - flat", lambda arms: arms["steep"]["height"] - arms["flat"]["height"], 0.5
        )
        absent = Claim("2", "Nothing is something.", "missing", lambda arms: arms["steep"]["missing"], 0.0)
        account = Account(
            published=("Slopes differ.",),
            faithful=("Slopes are slopes.",),
            deviates=("They are short, to save time.",),
            used="steps: {}",
            scales={"small": Scale("Multiplies.", arms, (higher, absent), run, seeds=3)},
            version=version,
        )
        return System(99, "Slopes", "On Slopes", "nowhere, 2026", "Steeper is higher.", "objectives", account)

    return make


@pytest.fixture
def with_gpu() -> Callable[[System], System]:
    def change(system: System) -> System:
        assert system.account is not None
        scale = replace(system.account.scales["small"], needs_gpu=True)
        return replace(system, account=replace(system.account, scales={"small": scale}))

    return change
