"""A wing of its own: scikit-learn estimators for many related tables or targets.

Names are resolved when they are first used, so that importing this package loads neither scikit-learn nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

PLACES = {
    "MultiTabBench": "multitab_bench",
    "MultiTabNet": "multitab",
    "MultiTabNetClassifier": "multitab",
    "MultiTabNetRegressor": "multitab",
    "TabularNetworkBaseline": "multitab_baselines",
    "multitask_gain": "network_scores",
}
"""Every public name and the file that holds it."""

__all__ = sorted(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)
