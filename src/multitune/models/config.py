"""Which pretrained model is adapted, and how it is loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from multitune.tasks.task import Form


class ModelConfig(BaseModel):
    """The pretrained model of a recipe; in YAML a plain string means its name.

    Attributes:
        name: hub id (``org/name``), path of a folder, ``package:NAME`` for a model inside an installed Python package,
            or ``tiny`` for the embedded base.
        dtype: of the weights in memory. ``auto`` is bfloat16 on a GPU and float32 elsewhere. On a CPU every choice
            becomes float32, and the log says so.
        attn_implementation: as in transformers (``sdpa``, ``eager``, ``flash_attention_2``, ``flex_attention``).
        quantize: load frozen weights in 4 or 8 bits through bitsandbytes (needs a GPU and an adapter that trains).
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that a model repository ships; off unless asked for.
        form: overrides what is read from the model's own config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    quantize: Literal["4bit", "8bit"] | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    form: Form | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
