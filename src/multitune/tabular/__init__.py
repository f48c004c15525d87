"""A wing of its own: scikit-learn estimators for many related tables or targets.

Names are resolved when they are first used, so that importing this package loads neither scikit-learn nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from multitune.errors import MultituneError

PLACES = {
    "MultiTabBench": "multitab_bench",
    "MultiTabNet": "multitab",
    "MultiTabNetClassifier": "multitab",
    "MultiTabNetRegressor": "multitab",
    "RMTGBClassifier": "rmtgb",
    "RMTGBRegressor": "rmtgb",
    "TaskBaseline": "task_baselines",
    "TaskComparison": "task_comparison",
    "TabularNetworkBaseline": "multitab_baselines",
    "compare_tasks": "task_comparison",
    "feature_importance": "task_effects",
    "make_multitask_tables": "multitask_tables",
    "multitask_gain": "network_scores",
    "partial_dependence": "task_effects",
    "plot_theta": "theta_plot",
}
"""Every public name and the file that holds it."""

NEEDED = {"sklearn": "scikit-learn", "numba": "numba"}
"""Modules of the extra ``tables``, and the packages that bring them."""

__all__ = sorted(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{PLACES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise MultituneError(
            f"{name} needs {NEEDED[error.name]}, which is not installed.",
            "multitune.tabular",
            "Install it with `pip install 'multitune[tables]'`.",
        ) from None
    return getattr(module, name)
