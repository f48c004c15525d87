"""What a recipe says of half fine-tuning. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multitune.errors import nearest


class HalfConfig(BaseModel):
    """Half fine-tuning (arXiv 2404.18466): a random half of the blocks trains, the other half stays as it is.

    Attributes:
        fraction: share of the block matrices that trains; the paper found 0.4 to 0.6 alike and 0.5 best.
        granularity: what is halved: every ``category`` of every layer (attention, feed-forward, norms), whole ``layer``
            by layer, or the matrices of the ``model`` anywhere.
        balance: whether the fraction counts matrices (as in the paper) or their parameters, which differ where keys
            and values are smaller than queries (grouped-query attention).
        resample: draw once per ``run`` (as in the paper), or again at every ``epoch`` of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = Field(0.5, ge=0, le=1)
    granularity: Literal["category", "layer", "model"] = "category"
    balance: Literal["count", "params"] = "count"
    resample: Literal["run", "epoch"] = "run"


def half_problems(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with options, in sentences; [] where they make a HalfConfig."""
    try:
        HalfConfig(**options)
    except ValidationError as error:
        return [_sentence(problem) for problem in error.errors()]
    return []


def _sentence(problem: Any) -> str:
    name = problem["loc"][0]
    if problem["type"] == "extra_forbidden":
        return f"The method 'half' has no option '{name}'.{nearest(name, HalfConfig.model_fields)}"
    wanted = problem["msg"].removeprefix("Input should be ")
    return f"The option '{name}' of 'half' must be {wanted}, not {problem['input']!r}."
