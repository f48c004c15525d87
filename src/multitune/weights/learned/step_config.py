"""What a merge step of a recipe says of methods that look at rows: their ``parameters``. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multitune.errors import MultituneError, MultituneErrors, nearest
from multitune.weights.config import MergeConfig


class RowSettings(BaseModel):
    """Which rows are looked at.

    Attributes:
        rows: at most so many validation rows per task, drawn by the merge's seed.
        batch_size: rows of a task at a time.
        max_length: tokens of a row; longer ones are cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 32
    max_length: Annotated[int, Field(ge=2)] = 512


class AtlasSettings(RowSettings):
    """aTLAS (arXiv 2407.02880): a coefficient per model and block, learned from labelled validation rows.

    Attributes:
        pick: share of each task's rows that only choose the epoch that is kept, the start among them.
        least_batches: rows are gone through again until an epoch has so many; the paper takes 10 for few rows.
        blocks, partitions: see ``weights.learned.blocks.blocks_of``.
        learning_rate, weight_decay, epochs, schedule, clip, init: see ``LearningConfig``; the paper's for addition.
    """

    pick: Annotated[float, Field(gt=0, lt=1)] = 0.25
    least_batches: Annotated[int, Field(ge=1)] = 1
    blocks: Literal["tensor", "all", "layer", "category", "layer and category"] = "tensor"
    partitions: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 20
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Annotated[float, Field(gt=0)] = 1.0
    init: float = 0.0


class AdaMergingSettings(RowSettings):
    """AdaMerging (arXiv 2310.02575): coefficients that make the merged model sure of rows whose labels are not read.

    Attributes:
        wise: a coefficient per model and tensor (``layer``, as the authors count layers), or per model (``task``).
        steps: of the optimiser, each on a batch of every task.
        learning_rate, init: the authors'.
    """

    batch_size: Annotated[int, Field(ge=1)] = 16
    wise: Literal["layer", "task"] = "layer"
    steps: Annotated[int, Field(ge=1)] = 500
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    init: float = 0.3


class FisherSettings(RowSettings):
    """Fisher merging (arXiv 2111.09832): entries weighed by each model's information on the rows of its own tasks.

    Attributes:
        weight: of every model; each may have its own.
        floor: see ``weights.learned.fisher.FisherAverage``.
    """

    rows: Annotated[int, Field(ge=1)] | None = 256
    weight: Annotated[float, Field(gt=0)] = 1.0
    floor: Annotated[float, Field(gt=0)] = 1e-6


class RegMeanSettings(RowSettings):
    """RegMean (arXiv 2212.09849): linear layers that keep the outputs of every model on the rows of its own tasks.

    Attributes:
        alpha: what off-diagonal inner products are scaled by.
    """

    rows: Annotated[int, Field(ge=1)] | None = 256
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9


LEARNED_METHODS: dict[str, type[RowSettings]] = {
    "atlas": AtlasSettings,
    "adamerging": AdaMergingSettings,
    "fisher": FisherSettings,
    "regmean": RegMeanSettings,
}
"""Merging methods that look at rows, and what ``parameters`` says of each."""

EACH_MODEL = {"fisher": ("weight",)}
"""Parameters that each model may have of its own."""


def learned_settings(config: MergeConfig, own: Mapping[str, Any] | None = None) -> Any:
    """Return the settings of a merge by a method of ``LEARNED_METHODS``.

    Args:
        config: its ``parameters`` are read.
        own: parameters of one model, which go before them.

    Raises:
        MultituneErrors: unknown parameters, with the nearest name; values out of range.
    """
    kind = LEARNED_METHODS[config.method]
    try:
        return kind.model_validate({**config.parameters, **(own or {})})
    except ValidationError as error:
        raise MultituneErrors([_told(problem, config.method, kind) for problem in error.errors()]) from None


def _told(problem: Any, method: str, kind: type[RowSettings]) -> MultituneError:
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return MultituneError(
            f"The method '{method}' has no parameter '{name}'.{nearest(name, kind.model_fields)}",
            f"parameters.{name}",
            f"Its parameters: {', '.join(kind.model_fields)}.",
        )
    wanted = problem["msg"].removeprefix("Input should be ")
    return MultituneError(
        f"The value {problem['input']!r} is not {wanted}.", f"parameters.{name}", "Give such a value, or leave it out."
    )
