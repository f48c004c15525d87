"""What is to be merged, checked before a byte of weights is read. Needs neither torch nor numpy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Schedule = Annotated[tuple[float, ...], Field(min_length=1)]
"""Values over depth: the first at the first layer, the last at the last, linear in between."""

Value = float | str | Schedule | dict[str, float | Schedule]
"""One parameter: a number, or a word for a choice; a schedule over depth; or number or schedule by tensor name. Names
are shell patterns (``*.mlp.*``), tried in the order in which they are written; ``default`` holds where none matches."""


class MergedModel(BaseModel):
    """One of the models that are merged.

    Attributes:
        model: folder of a whole model or a LoRA adapter; in a recipe also the name of a step.
        parameters: of this model alone (``weight``, ``density``, ...); they go before those of the merge.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    parameters: dict[str, Value] = {}

    @model_validator(mode="before")
    @classmethod
    def _model_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class Lines(BaseModel):
    """LiNeS (arXiv 2410.17146): the merged task vector times a factor that grows linearly with depth.

    factor(l) = alpha + beta (l - 1) / (L - 1), l = 1..L; alpha + beta where L is 1.

    Attributes:
        alpha: factor of the first block; ``norm``: (1/N) |sum of the task vectors|_1 / |merged task vector|_1.
        beta: what the last block gets more than the first.
        outside: what tensors outside the numbered blocks get: ``alpha``, as in the authors' code, or, for those behind
            the last block (final norm, head), the ``deepest`` block's factor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float | Literal["norm"] = "norm"
    beta: float = 0.5
    outside: Literal["alpha", "deepest"] = "alpha"


class SliceSource(BaseModel):
    """Layers ``first`` to ``last``, the last not among them, of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    layers: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]
    parameters: dict[str, Value] = {}


class Slice(BaseModel):
    """Some layers of the result, out of equally many layers of each source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: Annotated[tuple[SliceSource, ...], Field(min_length=1)]
    parameters: dict[str, Value] = {}


class MergeConfig(BaseModel):
    """One merge.

    Attributes:
        method: see ``multitune.weights.methods``.
        base: folder of the model that all were tuned from; methods on task vectors need it.
        models: the models that are merged, in the order in which the method reads them.
        slices: layers of the result one after another (depth up-scaling, layer stacking); in place of ``models``.
        parameters: of all models that do not give their own.
        lines: LiNeS on top of the method.
        dtype: of the written tensors; None: each as in the base (without one, as in the first model).
        vocabulary: when the models' vocabularies differ: ``refuse``; rows of the ``base`` tokenizer's tokens, matched
            by token; or the ``union`` of all tokens.
        compat: where libraries differ from a method's authors (trimming, sign election, rescaling), whom to follow.
        chat_template: text (Jinja) that goes beside the tokenizer; None: as in the base.
        seed: of random masks, which depend on it, the task, the tensor and the element alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    base: str | None = None
    models: tuple[MergedModel, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: dict[str, Value] = {}
    lines: Lines | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    vocabulary: Literal["refuse", "base", "union"] = "refuse"
    compat: Literal["authors", "mergekit"] = "authors"
    chat_template: str | None = None
    seed: int = Field(0, ge=0)
