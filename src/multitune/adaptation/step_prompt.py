"""The prompt that a train step puts before its inputs while the model itself trains (arXiv:2211.00635)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StepPrompt(BaseModel):
    """Vectors before every training input: those of an earlier step, or fresh ones; frozen unless they train too.

    In YAML a plain string is the step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str | None = Field(
        None, description="a step with adapt: prompt_tuning; with tasks: each, every task gets its own; or STEP.TASK"
    )
    vectors: int | None = Field(None, ge=0, description="instead of a step: so many fresh vectors for every task")
    init: Literal["vocabulary", "uniform"] = Field(
        "vocabulary", description="of fresh vectors: embeddings of random tokens, or uniform noise of their size"
    )
    trains: bool = Field(False, description="whether the prompt learns together with the model")

    @model_validator(mode="before")
    @classmethod
    def _step_alone(cls, value: Any) -> Any:
        return {"step": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> StepPrompt:
        if (self.step is None) == (self.vectors is None):
            raise ValueError("a soft prompt is that of a step, or has so many fresh vectors: give one of the two")
        if self.step is not None and "init" in self.model_fields_set:
            raise ValueError("init is of fresh vectors; the prompt of a step is as that step left it")
        return self
