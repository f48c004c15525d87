"""What a recipe says of half fine-tuning. Needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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
