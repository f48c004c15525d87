"""The balancer of a recipe: one frozen model per method, told apart by ``method``; a plain string means the method.

Defaults are the published ones unless the description says otherwise. Nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class _Balancing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def needs_validation(self) -> bool:
        """Whether every task must have validation data."""
        return False

    @property
    def needs_gradients(self) -> bool:
        """Whether every task's gradient is computed on its own: one backward pass per task and step."""
        return False


class WatchesValidation(_Balancing):
    """A balancer that is told validation losses."""

    update_interval: PositiveInt = Field(1, description="steps between two looks at the validation losses")
    validation_rows: PositiveInt = Field(4, description="validation rows per task at every look")

    @property
    def needs_validation(self) -> bool:
        return True


class _Gradients(_Balancing):
    @property
    def needs_gradients(self) -> bool:
        return True


class UniformConfig(_Balancing):
    """Every task present counts the same."""

    method: Literal["uniform"] = "uniform"


class FamoConfig(WatchesValidation):
    """FAMO (Liu et al. 2023, arXiv 2306.03792): decrease all log losses at the same rate.

    On validation losses as MFTCoder does, or on the training batch before and after the step as the paper does.
    """

    method: Literal["famo"] = "famo"
    losses: Literal["validation", "training"] = Field(
        "validation", description="whose decrease drives the weights: validation (MFTCoder) or training (FAMO)"
    )
    learning_rate: PositiveFloat = Field(0.025, description="Adam's, of the task logits")
    weight_decay: NonNegativeFloat = Field(0.01, description="of the task logits")
    minimum_loss: float = Field(0.0, description="the least loss a task can reach, taken off every loss")

    @property
    def needs_validation(self) -> bool:
        return self.losses == "validation"


class SelfPacedConfig(WatchesValidation):
    """Self-paced weights of MFTCoder 0.3: from the slopes of the validation losses over a window."""

    method: Literal["self_paced"] = "self_paced"
    window: int = Field(100, ge=2, description="validation losses per task that a slope is fitted on")
    sharpness: PositiveFloat = Field(50.0, description="factor of the scores before the last softmax")


class CobaConfig(WatchesValidation):
    """CoBa (Gong et al. 2024, arXiv 2410.06741): converge together, and hold back a task that diverges."""

    method: Literal["coba"] = "coba"
    variant: Literal["code", "paper"] = Field(
        "code", description="code: softmax of the scores and a floor; paper: the scores, divergence factor at most 1"
    )
    warmup_steps: int = Field(100, ge=2, description="steps of uniform weights; about one pass over validation data")
    window: int = Field(200, ge=2, description="validation losses per slope; two to five times warmup_steps")
    tau: PositiveFloat = Field(5.0, description="temperature of the divergence factor")

    @model_validator(mode="after")
    def _window_reaches_back(self) -> CobaConfig:
        if self.window < self.warmup_steps:
            raise ValueError(
                f"window {self.window} is shorter than warmup_steps {self.warmup_steps}, so that no slope would ever "
                "be compared; make it at least as long"
            )
        return self


class UncertaintyConfig(_Balancing):
    """Homoscedastic uncertainty (Kendall et al. 2018, arXiv 1705.07115): learn one log-variance per task."""

    method: Literal["uncertainty"] = "uncertainty"
    likelihood: Literal["classification", "regression"] = Field(
        "classification", description="exp(-s) L + s/2 (cross-entropy) or exp(-s) L/2 + s/2 (squared error)"
    )
    learning_rate: PositiveFloat = Field(0.01, description="Adam's, of the log-variances; ours, the paper names none")


class GradNormConfig(_Gradients):
    """GradNorm (Chen et al. 2018, arXiv 1711.02257): equal gradient norms, larger for tasks that train slowly."""

    method: Literal["gradnorm"] = "gradnorm"
    alpha: NonNegativeFloat = Field(1.5, description="how strongly slow tasks are pulled to the common pace")
    learning_rate: PositiveFloat = Field(0.025, description="Adam's, of the task weights")


class PCGradConfig(_Gradients):
    """PCGrad (Yu et al. 2020, arXiv 2001.06782): project conflicting task gradients off one another."""

    method: Literal["pcgrad"] = "pcgrad"


class CAGradConfig(_Gradients):
    """CAGrad (Liu et al. 2021, arXiv 2110.14048): near the mean gradient, the best for the task worst served."""

    method: Literal["cagrad"] = "cagrad"
    c: float = Field(0.5, ge=0, lt=1, description="radius around the mean gradient, relative to its norm")
    rescale: Literal["none", "square", "linear"] = Field(
        "none", description="divide by 1 (paper), 1 + c^2 (the authors' code) or 1 + c"
    )


class NashConfig(_Gradients):
    """Nash-MTL (Navon et al. 2022, arXiv 2202.01017): the Nash bargaining solution between task gradients."""

    method: Literal["nash"] = "nash"
    scaling: Literal["mean", "paper"] = Field(
        "mean", description="mean: coefficients sum to 1; paper: the bargain itself, whose norm is sqrt(tasks)"
    )


class GemConfig(_Gradients):
    """GEM (Lopez-Paz and Ranzato 2017, arXiv 1706.08840): learn new tasks, hurt no earlier one to first order."""

    method: Literal["gem"] = "gem"
    earlier: tuple[str, ...] = Field(min_length=1, description="tasks of earlier steps, in this step's mixture too")
    margin: NonNegativeFloat = Field(0.0, description="least factor of every memory once one is hurt; authors: 0.5")


def _method_alone(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


BalancerConfig = Annotated[
    Annotated[
        UniformConfig
        | FamoConfig
        | SelfPacedConfig
        | CobaConfig
        | UncertaintyConfig
        | GradNormConfig
        | PCGradConfig
        | CAGradConfig
        | NashConfig
        | GemConfig,
        Field(discriminator="method"),
    ],
    BeforeValidator(_method_alone),
]
