"""How prompts are tuned and how pre-training goes on: the defaults are those of PCP (arXiv:2305.01711)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Way = Literal["pcp", "tapt", "none"]
"""What stands before the fine-tuning: pre-training on texts in the prompt, on raw texts, or nothing."""


class _Schedule(BaseModel):
    """What both trainings have: AdamW with a linear decay after a linear warm-up.

    Attributes:
        batch_size: rows of a forward pass.
        accumulation: forward passes of an optimiser step.
        warmup: share of the steps.
        evaluate_every: steps between looks at the development rows; the best look's weights are kept.
        save_every: steps between checkpoints.
        max_length: tokens of an example.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accumulation: int = Field(1, ge=1)
    warmup: float = Field(0.06, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    save_every: int = Field(500, ge=1)


class FineTuning(_Schedule):
    """Prompt-based fine-tuning of all parameters.

    Attributes:
        learning_rates: each is tried from the same start, and the best on the development rows is kept; the paper's
            grid is 1e-5, 2e-5, 5e-5.
        official_loss: of a regression, the loss of the authors' code (see ``model.value_loss``).
    """

    steps: int = Field(1000, ge=0)
    batch_size: int = Field(8, ge=1)
    learning_rates: tuple[float, ...] = Field((2e-5,), min_length=1)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = Field(1e-8, gt=0)
    evaluate_every: int = Field(100, ge=1)
    max_length: int = Field(128, ge=4)
    official_loss: bool = False


class Pretraining(_Schedule):
    """Continued pre-training on the lines of a corpus, each a sequence of its own.

    Attributes:
        epochs: passes over the corpus; not used where ``steps`` are given.
        mask_probability: share of the tokens that are to be predicted, drawn anew every time; of them 80 % become the
            mask, 10 % a random token, 10 % stay.
        always_mask_label: whether the first token of every line, which the label word must be, is always one of them.
        max_length: None: what the model can read.
    """

    epochs: float = Field(100.0, ge=0)
    steps: int | None = Field(None, ge=0)
    batch_size: int = Field(16, ge=1)
    accumulation: int = Field(8, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    adam_betas: tuple[float, float] = (0.9, 0.98)
    adam_epsilon: float = Field(1e-6, gt=0)
    evaluate_every: int = Field(500, ge=1)
    max_length: int | None = Field(None, ge=4)
    mask_probability: float = Field(0.15, gt=0, lt=1)
    always_mask_label: bool = False
