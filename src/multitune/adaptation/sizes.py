"""What every method would train on one model, counted on its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.methods import METHODS, NOT_OFFERED, REQUIRED
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig


def sizes_on(name: str, methods: Sequence[str], budget: float | None = None) -> dict[str, dict[str, Any]]:
    """Return per method {"sized": options that a budget set, "trainable": numbers, "share": of the base's, "problem"}.

    Args:
        name: a model's folder or hub id.
        methods: by the registry's names.
        budget: as in `AdaptationConfig`; None: every method at its defaults.

    Raises:
        MultituneError: the model cannot be found or read.
    """
    from multitune.adaptation.adapting import sized_within, trainable_parameters
    from multitune.models.pretrained import model_facts

    facts = model_facts(ModelConfig(name=name))
    found = {}
    for method in methods:
        sized: dict[str, Any] = {}
        trainable, problem = None, None
        try:
            if method in NOT_OFFERED or method in REQUIRED:
                raise MultituneError(NOT_OFFERED.get(method) or f"needs {', '.join(REQUIRED[method])}", "", "")
            config = AdaptationConfig(method=method)
            if budget is not None and METHODS[method].size is not None:
                config = sized_within(AdaptationConfig(method=method, budget=budget), facts.config)
                sized = config.options
            trainable = trainable_parameters(facts, config, advise=False)
            problem = "known only once the weights are loaded" if trainable is None else None
            allowed = budget * facts.parameters if budget is not None and budget < 1 else budget
            if trainable is not None and allowed is not None and trainable > allowed:
                problem = "beyond the budget"
        except MultituneError as error:
            problem = error.what
        share = trainable / facts.parameters if trainable is not None else None
        found[method] = {"sized": sized, "trainable": trainable, "share": share, "problem": problem}
    return found
