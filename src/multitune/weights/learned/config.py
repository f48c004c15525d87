"""How coefficients are learned. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Route = Literal["streamed", "autograd", "linearised"]


class LearningConfig(BaseModel):
    """One learning of coefficients by AdamW; the defaults are those of aTLAS for task addition (arXiv 2407.02880).

    Attributes:
        learning_rate, weight_decay: of AdamW; the decay pulls towards the pretrained model, which is meant.
        epochs: an epoch ends with the task that has the fewest batches.
        schedule: of the learning rate; ``cosine`` falls to 0 at the end, without warm-up.
        clip: largest norm of the gradient over all coefficients; None does not clip.
        init: of every coefficient; 0 is the pretrained model.
        clamp: lowest and highest value that a coefficient may take.
        regularise: p of the penalty 0.5 * mean over blocks of the Lp norm across vectors; None: no penalty.
        sharpness_radius: above 0, the gradient is taken that far up the slope (SAM, arXiv 2010.01412).
        keep: the coefficients of the epoch with the best score, the start among them, or of the last.
        route: ``streamed`` holds one copy of the weights, however many vectors there are; ``autograd`` differentiates
            through the composition and holds them all; ``linearised`` learns in the tangent space at the base.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 20
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    init: float = 0.0
    clamp: tuple[float, float] | None = None
    regularise: Literal[1, 2] | None = None
    sharpness_radius: Annotated[float, Field(ge=0)] = 0.0
    keep: Literal["best", "last"] = "best"
    route: Route = "streamed"

    @field_validator("clamp")
    @classmethod
    def _range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"clamp is {value[0]:g} to {value[1]:g}; give the lowest value first")
        return value


SETTINGS: dict[str, LearningConfig] = {
    "addition": LearningConfig(),
    "negation": LearningConfig(learning_rate=5e-3),
    "few-shot": LearningConfig(learning_rate=0.1, epochs=10, schedule="cosine"),
    "test-time": LearningConfig(learning_rate=0.1, epochs=10, schedule="cosine", keep="last"),
    "partitioned": LearningConfig(learning_rate=0.1, epochs=10, schedule="cosine"),
    "adamerging": LearningConfig(
        learning_rate=1e-3, weight_decay=0.0, clip=None, init=0.3, clamp=(0.0, 1.0), epochs=1, keep="last"
    ),
}
"""The published settings by name: aTLAS's, and AdaMerging's (arXiv 2310.02575), whose epochs are the caller's."""
